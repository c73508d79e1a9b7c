#include <sae/core/threads.hpp>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "catch_compat.hpp"

namespace {
using sae::Index;
}

TEST_CASE("Threads run each block once", "[core][threads]") {
  for (const int count : {1, 2, 3, 8}) {
    sae::Threads threads(count);
    CHECK(threads.count() == count);
    for (const Index blocks : {0, 1, 2, 7, 100}) {
      std::vector<std::atomic<int>> calls(static_cast<std::size_t>(blocks));
      threads.run(blocks, [&](Index block) { ++calls[static_cast<std::size_t>(block)]; });
      for (const auto& n : calls) REQUIRE(n == 1);
    }
  }
}

TEST_CASE("for_blocks cuts by size alone and covers everything", "[core][threads]") {
  sae::Threads threads(3);
  for (const Index n : {0, 1, 4, 5, 6, 64})
    for (const Index size : {1, 5, 100}) {
      std::vector<std::atomic<int>> calls(static_cast<std::size_t>(n));
      std::atomic<int> blocks{0};
      threads.for_blocks(n, size, [&](Index begin, Index end, Index block) {
        ++blocks;
        if (begin != block * size || end - begin < 1 || end - begin > size || (end - begin < size && end != n)) blocks = -1000;
        for (Index i = begin; i < end; ++i) ++calls[static_cast<std::size_t>(i)];
      });
      CHECK(blocks == (n + size - 1) / size);
      for (const auto& c : calls) REQUIRE(c == 1);
    }
}

TEST_CASE("the exception of the lowest block is rethrown, and the pool works on", "[core][threads]") {
  for (const int count : {1, 2, 4}) {
    sae::Threads threads(count);
    for (int round = 0; round < 20; ++round) {
      std::string message;
      try {
        threads.run(50, [](Index block) {
          if (block % 10 == 7) sae::throw_value("block ", block);
        });
      } catch (const sae::ValueError& e) {
        message = e.what();
      }
      REQUIRE(message == "block 7");
      std::atomic<Index> sum{0};
      threads.run(10, [&](Index block) { sum += block; });
      REQUIRE(sum == 45);
    }
  }
}

TEST_CASE("a call from inside a block runs serially, in order", "[core][threads]") {
  sae::Threads threads(3), other(2);
  for (sae::Threads* inner : {&threads, &other}) {
    std::vector<std::vector<Index>> order(6);
    std::vector<std::thread::id> ids(6);
    std::atomic<bool> same_thread{true};
    threads.run(6, [&](Index block) {
      const auto me = std::this_thread::get_id();
      inner->run(5, [&](Index nested) {
        if (std::this_thread::get_id() != me) same_thread = false;
        order[static_cast<std::size_t>(block)].push_back(nested);
      });
    });
    CHECK(same_thread);
    for (const auto& seen : order) CHECK(seen == std::vector<Index>{0, 1, 2, 3, 4});
  }
  // A nested exception is the block's exception.
  CHECK_THROWS_AS(threads.run(3, [&](Index) { threads.run(3, [](Index) { sae::throw_shape("inner"); }); }), sae::ShapeError);
}

TEST_CASE("many small runs, and callers from several threads", "[core][threads]") {
  sae::Threads threads(2);
  std::int64_t sum = 0;
  for (int i = 0; i < 20000; ++i) {
    std::atomic<int> calls{0};
    threads.run(2, [&](Index) { ++calls; });
    sum += calls;
  }
  CHECK(sum == 40000);

  std::atomic<std::int64_t> total{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([&] {
      for (int i = 0; i < 200; ++i) threads.run(4, [&](Index block) { total += block; });
    });
  for (auto& caller : callers) caller.join();
  CHECK(total == 4 * 200 * 6);
}

TEST_CASE("Threads: counts", "[core][threads]") {
  CHECK(sae::Threads().count() >= 1);
  CHECK(sae::Threads::shared().count() >= 1);
  CHECK(&sae::Threads::shared() == &sae::Threads::shared());
  CHECK_THROWS_WITH(sae::Threads(-1), "Threads: count = -1 is negative (0 takes all cores)");
  for (int i = 0; i < 50; ++i) sae::Threads never_used(3);
}
