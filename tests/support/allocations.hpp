#pragma once

namespace sae_test {

/// Counts what all threads take from the free store by `new`, from here on; one at a time.
class CountAllocations {
 public:
  CountAllocations();
  ~CountAllocations();
  CountAllocations(const CountAllocations&) = delete;
  CountAllocations& operator=(const CountAllocations&) = delete;
  long count() const;
};

}  // namespace sae_test
