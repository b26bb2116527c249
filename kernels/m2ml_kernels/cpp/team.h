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
#include <vector>

#include "call.h"

namespace m2ml {

// A part of the work, [begin, end), and those that its thread does after it.
class Portion {
 public:
  int64_t begin = 0, end = 0;

  // What [0, count) is divided into: for each thread parts that follow one another, and then those that others left.
  struct Job {
    Job(int64_t count, int64_t size, int64_t threads) : count(count), size(size), parts((count + size - 1) / size), shares(threads) {
      for (int64_t i = 0; i < threads; ++i) shares[i].left = of(parts * i / threads, parts * (i + 1) / threads);
    }
    struct alignas(64) Share { std::atomic<uint64_t> left; };  // the first part and one past the last, 32 bits each
    static uint64_t of(uint64_t first, uint64_t last) { return last << 32 | first; }

    const int64_t count, size, parts;
    std::vector<Share> shares;
    std::atomic<int64_t> threads{0}, done{0};
    std::function<void(Portion&)> run;
  };

  explicit Portion(int64_t count) : end(count) {}  // all of it in one
  explicit Portion(Job& job) : job_(&job), own_(job.threads.fetch_add(1, std::memory_order_relaxed)) {}

  // The next part; false when all are taken.
  bool next() {
    if (!job_) return false;
    if (end) job_->done.fetch_add(1, std::memory_order_release);
    const int64_t shares = job_->shares.size();
    for (; tried_ < shares; ++tried_) {
      std::atomic<uint64_t>& left = job_->shares[(own_ + tried_) % shares].left;
      for (uint64_t now = left.load(std::memory_order_relaxed); uint32_t(now) < now >> 32;) {
        // Its own from the front, another's from the back.
        const bool own = tried_ == 0 && own_ < shares;
        const uint64_t first = uint32_t(now), last = now >> 32, part = own ? first : last - 1;
        if (!left.compare_exchange_weak(now, own ? Job::of(first + 1, last) : Job::of(first, part), std::memory_order_relaxed)) continue;
        begin = part * job_->size, end = std::min(job_->count, begin + job_->size);
        return true;
      }
    }
    return false;
  }

 private:
  Job* job_ = nullptr;
  int64_t own_ = 0, tried_ = 0;
};

class Team {
 public:
  // As Call::parallel.
  template <class Work> static void parallel(const Call& call, int64_t count, int64_t grain, const Work& work) {
    each_thread(call, count, grain, [&](Portion& portion) {
      do work(portion.begin, portion.end);
      while (portion.next());
    });
  }

  // The same for work that keeps something from part to part: each thread that has one calls work(portion) once.
  template <class Work> static void each_thread(const Call& call, int64_t count, int64_t grain, const Work& work) {
    if (count <= 0) return;
    grain = std::max<int64_t>(grain, 1);
    const int64_t helpers = count <= grain ? 0 : std::min(call.threads(), (count + grain - 1) / grain) - 1;
    if (helpers <= 0) {
      Portion all(count);
      return work(all);
    }
    const auto job = std::make_shared<Portion::Job>(count, std::max(grain, count / (4 * (helpers + 1))), helpers + 1);
    job->run = std::cref(work);
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
    do_portion(*job);
    while (job->done.load(std::memory_order_acquire) < job->parts) Call::pause();
  }

 private:
  // Whoever comes when all parts are taken calls nothing: what `run` refers to may be gone.
  static void do_portion(Portion::Job& job) {
    Portion portion(job);
    if (portion.next()) job.run(portion);
  }

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

  void help(std::shared_ptr<Portion::Job> job) {
    uint64_t seen = number_.load(std::memory_order_acquire);
    do_portion(*job);
    waiting_.fetch_add(1, std::memory_order_acq_rel);
    for (auto until = deadline(); std::chrono::steady_clock::now() < until; std::this_thread::yield()) {
      const uint64_t number = number_.load(std::memory_order_acquire);
      if (number == seen) continue;
      seen = number;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        job = job_;
      }
      do_portion(*job);
      until = deadline();
    }
    waiting_.fetch_sub(1, std::memory_order_acq_rel);
  }

  static std::chrono::steady_clock::time_point deadline() { return std::chrono::steady_clock::now() + std::chrono::microseconds(100); }

  std::mutex mutex_;
  std::shared_ptr<Portion::Job> job_;
  std::atomic<uint64_t> number_{0};
  std::atomic<int64_t> waiting_{0};
};

}  // namespace m2ml
