// What the fuzzers share: random numbers, memory of exact sizes, and calls shared out over threads.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

struct Random {
  std::mt19937 engine;
  int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine); }
  float real(float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(engine);
  }
  bool one_in(int many) { return between(1, many) == 1; }
};

// An allocation of its own: a sanitizer sees the first byte before and behind it.
template <typename T>
std::unique_ptr<T[]> exactly(size_t count) {
  return std::unique_ptr<T[]>(new T[count]());
}

[[noreturn]] inline void fail(const char* what, int call) {
  std::fprintf(stderr, "call %d: %s\n", call, what);
  std::_Exit(1);
}

// `program CALLS THREADS`: every call in a thread of its own, so that the memory that a thread keeps is as large as
// this call needs, and not as an earlier one needed.
template <typename Call>
int fuzz(int argc, char** argv, Call call) {
  const int calls = argc > 1 ? std::atoi(argv[1]) : 100, threads = argc > 2 ? std::atoi(argv[2]) : 1;
  for (int start = 0; start < calls; start += threads) {
    std::vector<std::thread> others;
    for (int number = start; number < start + threads && number < calls; ++number)
      others.emplace_back([&call, number] {
        Random random{std::mt19937(static_cast<unsigned>(number))};
        call(random, number);
      });
    for (std::thread& thread : others) thread.join();
  }
  std::printf("%d calls\n", calls);
  return 0;
}
