// Work for several threads, of which the helpers stay a moment: a network's next layer comes within microseconds, and
// waking a thread that sleeps takes as long as computing a small layer. While they wait, whoever else is ready may run:
// the thread that prepares the next program is.
#pragma once

#if defined(__linux__)
#include <sched.h>
#endif

#include <chrono>
#include <functional>
#include <mutex>
#include <thread>

#include "call.h"

namespace m2ml {

class Team {
 public:
  // As Call::parallel.
  template <class Work> static void parallel(const Call& call, int64_t count, int64_t grain, const Work& work) {
    if (count <= 0) return;
    grain = std::max<int64_t>(grain, 1);
    const int64_t helpers = count <= grain ? 0 : std::min(call.threads(), (count + grain - 1) / grain) - 1;
    if (helpers <= 0) return work(int64_t{0}, count);
    const int64_t part = std::max(grain, count / (4 * (helpers + 1)));
    auto job = std::make_shared<Job>();
    job->run = std::cref(work), job->count = count, job->part = part, job->parts = (count + part - 1) / part;
    Team& team = shared();
    {
      std::lock_guard<std::mutex> lock(team.mutex_);
      team.job_ = job;
    }
    team.number_.fetch_add(1, std::memory_order_release);
    const int64_t waiting = team.waiting_.load(std::memory_order_acquire);
    if (waiting < helpers) {
      const int core = core_of_this_thread();
      for (int64_t i = waiting; i < helpers; ++i)
        call.later([job, core] {
          leave(core);
          shared().help(job);
        });
      std::this_thread::yield();
    }
    job->help();
    while (job->done.load(std::memory_order_acquire) < job->parts) Call::pause();
  }

 private:
  struct Job {
    std::atomic<int64_t> next{0}, done{0};
    std::function<void(int64_t, int64_t)> run;
    int64_t count, part, parts;
    // Whoever comes when all parts are taken calls nothing: what `run` refers to may be gone.
    void help() {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < parts; done.fetch_add(1, std::memory_order_release))
        run(i * part, std::min(count, (i + 1) * part));
    }
  };

  // A thread that is woken may be queued on the core of the one that wakes it, and another core stay idle until the
  // system looks again, which is after milliseconds. So whoever wakes a helper lets it run, and it goes elsewhere.
#if defined(__linux__)
  static int core_of_this_thread() { return sched_getcpu(); }
  static void leave(int core) {
    cpu_set_t all, others;
    if (sched_getcpu() != core || sched_getaffinity(0, sizeof all, &all) != 0) return;
    others = all;
    CPU_CLR(core, &others);
    if (CPU_COUNT(&others) > 0 && sched_setaffinity(0, sizeof others, &others) == 0) sched_setaffinity(0, sizeof all, &all);
  }
#else
  static int core_of_this_thread() { return -1; }
  static void leave(int) {}
#endif

  static Team& shared() {
    static Team& team = *new Team;  // never destroyed: a helper may still wait when the process ends
    return team;
  }

  void help(std::shared_ptr<Job> job) {
    uint64_t seen = number_.load(std::memory_order_acquire);
    job->help();
    waiting_.fetch_add(1, std::memory_order_acq_rel);
    for (auto until = deadline(); std::chrono::steady_clock::now() < until; std::this_thread::yield()) {
      const uint64_t number = number_.load(std::memory_order_acquire);
      if (number == seen) continue;
      seen = number;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        job = job_;
      }
      job->help();
      until = deadline();
    }
    waiting_.fetch_sub(1, std::memory_order_acq_rel);
  }

  static std::chrono::steady_clock::time_point deadline() { return std::chrono::steady_clock::now() + std::chrono::microseconds(100); }

  std::mutex mutex_;
  std::shared_ptr<Job> job_;
  std::atomic<uint64_t> number_{0};
  std::atomic<int64_t> waiting_{0};
};

}  // namespace m2ml
