#pragma once
#include <sae/core/types.hpp>

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace sae::inline SAE_ABI {

/// Things that blocks of work borrow: as many as blocks run at once, kept for the next step.
template <class T>
class Pool {
 public:
  class Loan {
   public:
    Loan(Pool& pool, T thing) : pool_(pool), thing_(std::move(thing)) {}
    ~Loan() { pool_.give_back(std::move(thing_)); }
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;
    T& operator*() { return thing_; }
    T* operator->() { return &thing_; }
    auto data() { return thing_.data(); }

   private:
    Pool& pool_;
    T thing_;
  };
  /// As its last borrower left it.
  Loan borrow() { return {*this, take()}; }

 protected:
  T take() {
    T thing;
    const std::lock_guard lock(*mutex_);
    if (!free_.empty()) {
      thing = std::move(free_.back());
      free_.pop_back();
    }
    return thing;
  }

 private:
  void give_back(T thing) {
    const std::lock_guard lock(*mutex_);
    free_.push_back(std::move(thing));
  }
  std::unique_ptr<std::mutex> mutex_ = std::make_unique<std::mutex>();
  std::vector<T> free_;
};

/// Scratch memory.
template <class Scalar>
class ScratchPool : public Pool<Buffer<Scalar>> {
 public:
  /// A buffer of at least `size` numbers with unspecified content.
  typename Pool<Buffer<Scalar>>::Loan borrow(Index size) {
    Buffer<Scalar> buffer = this->take();
    if (buffer.size() < static_cast<std::size_t>(size)) buffer.resize(static_cast<std::size_t>(size));
    return {*this, std::move(buffer)};
  }
};

}  // namespace sae::inline SAE_ABI
