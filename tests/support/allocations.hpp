#pragma once

// Address sanitizers have new and delete of their own.
#if defined(__SANITIZE_ADDRESS__)
#define SAE_COUNTS_ALLOCATIONS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SAE_COUNTS_ALLOCATIONS 0
#endif
#endif
#ifndef SAE_COUNTS_ALLOCATIONS
#define SAE_COUNTS_ALLOCATIONS 1
#endif

namespace sae_test {

/// Counts what all threads take from the free store by `new`, from here on; one at a time.
class CountAllocations {
 public:
  CountAllocations();
  ~CountAllocations();
  CountAllocations(const CountAllocations&) = delete;
  CountAllocations& operator=(const CountAllocations&) = delete;
  long count() const;
  long largest() const;  ///< bytes of the largest one
};

}  // namespace sae_test
