#include "allocations.hpp"

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

std::atomic<bool> counts{false};
std::atomic<long> counted{0}, largest_counted{0};

#if SAE_COUNTS_ALLOCATIONS
void* take(std::size_t size, std::size_t alignment) {
  if (counts) {
    ++counted;
    const auto bytes = static_cast<long>(size);
    long before = largest_counted;
    while (bytes > before && !largest_counted.compare_exchange_weak(before, bytes)) {}
  }
  if (size == 0) size = 1;
  // aligned_alloc asks for a multiple of the alignment.
  void* const out = alignment <= alignof(std::max_align_t)
                        ? std::malloc(size)
                        : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (out == nullptr) throw std::bad_alloc();
  return out;
}
#endif

}  // namespace

#if SAE_COUNTS_ALLOCATIONS

// The other forms of new and delete call these.
void* operator new(std::size_t size) { return take(size, 1); }
void* operator new(std::size_t size, std::align_val_t alignment) { return take(size, static_cast<std::size_t>(alignment)); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
#endif

namespace sae_test {

CountAllocations::CountAllocations() {
  counted = 0;
  largest_counted = 0;
  counts = true;
}
CountAllocations::~CountAllocations() { counts = false; }
long CountAllocations::count() const { return counted; }
long CountAllocations::largest() const { return largest_counted; }

}  // namespace sae_test
