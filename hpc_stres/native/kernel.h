// What the kernels on activations share: types, answers, and work shared out over threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <dlfcn.h>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__) && defined(__FMA__)
#include <immintrin.h>
#define HPC_STRES_FMA 1
#endif

namespace {

enum Kind { float32 = 0, bfloat16 = 1, float64 = 2 };
enum Answer { done = 0, bad_call = 1, no_memory = 2 };

// torch's own team of threads, if this process has one: a second team would fight with the first
// for the cores, because a team that has finished keeps waiting in a loop for more.
using TeamOf = void (*)(void (*)(void*), void*, unsigned, unsigned);

TeamOf torch_team() {
  static const TeamOf team = reinterpret_cast<TeamOf>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return team;
}

// Runs work(0) to work(count - 1), each once, on some threads.
template <class Work>
void spread(int64_t count, int64_t threads, const Work& work) {
  struct Shared {
    const Work* work;
    std::atomic<int64_t> next;
    int64_t count;
    std::atomic<bool> short_of_memory;

    static void run(void* data) {
      Shared& shared = *static_cast<Shared*>(data);
      try {
        for (int64_t i; (i = shared.next.fetch_add(1)) < shared.count;) (*shared.work)(i);
      } catch (const std::bad_alloc&) {
        shared.short_of_memory = true;  // an exception must not leave its thread
      }
    }
  } shared{&work, {0}, count, {false}};
  threads = std::min(threads, count);
  if (threads <= 1) {
    Shared::run(&shared);
  } else if (torch_team()) {
    torch_team()(Shared::run, &shared, static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> others;
    try {
      for (int64_t extra = 1; extra < threads; ++extra) others.emplace_back(Shared::run, &shared);
    } catch (const std::system_error&) {
      // The machine gives no more threads: those that there are do the work.
    }
    Shared::run(&shared);
    for (std::thread& thread : others) thread.join();
  }
  if (shared.short_of_memory) throw std::bad_alloc();
}

}  // namespace
