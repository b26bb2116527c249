// One threadgroup on one OS thread: each Metal thread is a fiber that runs until it must wait for others.
#pragma once
#include <csetjmp>
#include <memory>
#include <numeric>
#include <random>

#include "counters.h"

namespace m2 {

enum class state { fresh, ready, meeting, barrier, done };

struct lane {
  thread_info info{};
  context ctx;
  state now = state::fresh;
  site where{};
  resolver resolve = nullptr;
  void* frame = nullptr;
  meeting kind = meeting::simd;
};

inline extent position(u64 index, extent size) {
  return {u32(index % size.x), u32(index / size.x % size.y), u32(index / size.x / size.y)};
}
inline u64 volume(extent e) { return u64(e.x) * e.y * e.z; }

class group {
 public:
  group(job& work, entry kernel, counters* counts = nullptr) : job_(work), kernel_(kernel), counts_(counts) {
#ifdef M2_TSAN
    scheduler_.fiber = __tsan_get_current_fiber();
#endif
  }
  static thread_local group* current;

  void run(extent index, u64 number) {
    draw_.seed(job_.seed * 1000003 + number);
    lay_out(index);
    for (;;) {
      for (u32 s : ordered(simdgroups_)) {
        run_simdgroup(s);
        if (job_.stop) return abandon();
      }
      if (counts_) counts_->settle();
      if (!release_barrier()) break;
    }
    check_memory();
  }

  // --- called by the kernel, on a fiber ---
  void meet(resolver resolve, void* frame, const site& where, meeting kind) {
    lane& self = *running_;
    self.resolve = resolve;
    self.frame = frame;
    self.where = where;
    self.kind = kind;
#ifdef M2_TSAN
    bool orders = kind == meeting::matrix || kind == meeting::barrier;
    char* fence = &simd_fences_[self.info.simdgroup * 2 + simd_phase_[self.info.simdgroup] % 2];
    if (orders) __tsan_release(fence);
#endif
    wait(state::meeting);
#ifdef M2_TSAN
    if (orders) __tsan_acquire(fence);
#endif
  }
  void barrier([[maybe_unused]] u32 flags, const site& where) {
    running_->where = where;
#ifdef M2_TSAN
    char* fence = &fences_[phase_ % 2];
    if (flags) __tsan_release(fence);
#endif
    wait(state::barrier);
#ifdef M2_TSAN
    if (flags) __tsan_acquire(fence);
#endif
  }
  void* variable(const site& where, u64 bytes, u64) {
    for (auto& [known, memory] : variables_)
      if (known.file == where.file && known.line == where.line && known.what == where.what && memory->bytes() == bytes)
        return use(*memory);
    std::string name = "threadgroup variable '" + std::string(where.what) + "'";
#ifdef M2_TSAN
    uint8_t* place = arena_->data() + arena_used_;
    arena_used_ += (bytes + 127) / 64 * 64;
    if (arena_used_ > arena_->bytes()) fault("threadgroup memory", where, "no more than 32768 bytes of threadgroup memory exist");
    variables_.emplace_back(where, std::make_unique<block>(name, bytes, place));
#else
    variables_.emplace_back(where, std::make_unique<block>(name, bytes));
#endif
    return use(*variables_.back().second);
  }
  void undefined(const rendezvous& r, u32 l, const char* what) {
    report("undefined shuffle", *r.where, what, lanes_[meeting_first_ + l].info, false);
  }
  [[noreturn]] void fault(const char* kind, const site& where, const std::string& what, u64 program_counter = 0) {
    finding found{kind, where.file ? where.file : "", what, where.line, 0, program_counter};
    if (running_) {
      found.thread = running_->info.position_in_threadgroup;
      found.group = running_->info.threadgroup;
    }
    found.fatal = true;
    job_.report(found);
    if (job_.finish) job_.finish(job_);
    siglongjmp(escape, 1);
  }
  const thread_info& self() const { return running_->info; }
  void touched(u64 pc, const uint8_t* address, u32 bytes, access how) {
    if (!running_) return;
    int region = counts_->region_of(address);
    if (region == elsewhere && in_threadgroup_memory(address)) region = shared;
    if (region != elsewhere) counts_->touched(running_->info.index_in_threadgroup, {pc, u64(address), bytes, region, how});
  }
  void entered(u64 pc) { counts_->entered(pc); }
  // Which thread runs, and what lies at an address, in one line; for the report of a sanitizer.
  std::string account(const uint8_t* address) const {
    if (!running_) return "";
    std::string words, out;
    const thread_info& t = running_->info;
    for (u32 x : {t.position_in_threadgroup.x, t.position_in_threadgroup.y, t.position_in_threadgroup.z, t.threadgroup.x, t.threadgroup.y, t.threadgroup.z})
      out += std::to_string(x) + " ";
    return out + (describe(address, words) ? words : "");
  }
  bool runs() const { return running_ != nullptr; }
  bool describe(const uint8_t* address, std::string& words) const {
    for (auto& buffer : job_.buffers)
      if (buffer.describes(address, words)) return true;
    for (auto& [where, memory] : variables_)
      if (memory->describes(address, words)) return true;
    for (auto& memory : argument_blocks_)
      if (memory->describes(address, words)) return true;
    if (running_ && address < running_->ctx.stack && address >= running_->ctx.stack - guard_bytes) {
      words = "below the thread's stack of 128 KiB";
      return true;
    }
    return false;
  }
  void abandon() {
    running_ = nullptr;
    for (lane& l : lanes_)
      if (l.ctx.stack) {
        stacks_.give(l.ctx.stack);
        l.ctx.stack = nullptr;
      }
  }

  sigjmp_buf escape;

 private:
  void lay_out(extent index) {
    extent nominal = job_.threadgroup, grid = job_.grid, groups = job_.groups();
    auto part = [](u32 whole, u32 size, u32 i) { return std::min(size, whole - i * size); };
    extent actual{part(grid.x, nominal.x, index.x), part(grid.y, nominal.y, index.y), part(grid.z, nominal.z, index.z)};
    u32 count = u32(volume(actual));
    simdgroups_ = (count + simd_width - 1) / simd_width;
    u32 dispatched = u32((volume(nominal) + simd_width - 1) / simd_width);
#ifdef M2_TSAN
    spent_lanes_.push_back(std::move(lanes_));  // kernels read it: it is not used again before the launch has ended
#endif
    lanes_ = std::vector<lane>(count);
    for (u32 i = 0; i < count; ++i) {
      extent p = position(i, actual);
      extent at{index.x * nominal.x + p.x, index.y * nominal.y + p.y, index.z * nominal.z + p.z};
      lanes_[i].info = {at, p, index, actual, nominal, grid, groups, i, i % simd_width, i / simd_width, simdgroups_, dispatched};
    }
    prepare_memory();
  }

  void prepare_memory() {
#if defined(M2_TSAN) || defined(M2_ASAN)
    // Fresh memory for each group; what earlier groups had is kept until the launch ends, so nothing orders them.
    for (auto& [where, memory] : variables_) spent_.push_back(std::move(memory));
    for (auto& memory : argument_blocks_) spent_.push_back(std::move(memory));
    variables_.clear();
    argument_blocks_.clear();
#endif
#ifdef M2_TSAN
    // Allocated here, before the fibers are: an allocation by one of them would be its write.
    spent_.push_back(std::make_unique<block>("threadgroup memory", 4 * max_threadgroup_bytes));
    arena_ = spent_.back().get();
    arena_used_ = 0;
    fence_memory_.push_back(std::make_unique<char[]>(2 + 2 * simdgroups_));
    fences_ = fence_memory_.back().get();
    simd_fences_ = fences_ + 2;
    simd_phase_.assign(simdgroups_, 0);
#endif
    phase_ = 0;
    if (argument_blocks_.empty())
      for (size_t i = 0; i < job_.memory_bytes.size(); ++i)
        argument_blocks_.push_back(std::make_unique<block>("threadgroup memory " + std::to_string(i), job_.memory_bytes[i]));
    memory_.clear();
    for (auto& memory : argument_blocks_) {
      memory->fill(job_.fill);
      memory_.push_back(memory->data());
    }
    used_.clear();
  }

  void* use(block& memory) {
    if (std::find(used_.begin(), used_.end(), &memory) == used_.end()) {
      memory.fill(job_.fill);
      used_.push_back(&memory);
    }
    return memory.data();
  }

  bool in_threadgroup_memory(const uint8_t* address) const {
    auto holds = [address](const block& memory) { return address >= memory.data() && address < memory.data() + memory.bytes(); };
    return std::any_of(used_.begin(), used_.end(), [&](const block* memory) { return holds(*memory); }) ||
           std::any_of(argument_blocks_.begin(), argument_blocks_.end(), [&](auto& memory) { return holds(*memory); });
  }

  void check_memory() {
    u64 total = 0;
    for (block* memory : used_) total += memory->bytes();
    for (u64 bytes : job_.memory_bytes) total += bytes;
    if (counts_) counts_->threadgroup_memory(total);
    if (total > max_threadgroup_bytes && !lanes_.empty()) {
      site where = variables_.empty() ? site{"", 0, 0, ""} : variables_.front().first;
      report("threadgroup memory", where, std::to_string(total) + " bytes of threadgroup memory are used; Metal has 32768", lanes_[0].info, false);
    }
    std::string words;
    for (auto& [where, memory] : variables_)
      if (!memory->intact(words)) report("out of bounds", where, "a write " + words, lanes_[0].info, false);
  }

  std::vector<u32> ordered(u32 count) {
    std::vector<u32> out(count);
    std::iota(out.begin(), out.end(), 0);
    if (job_.order == ordering::reverse) std::reverse(out.begin(), out.end());
    if (job_.order == ordering::random) std::shuffle(out.begin(), out.end(), draw_);
    return out;
  }

  void run_simdgroup(u32 s) {
    u32 first = s * simd_width, count = std::min<u32>(simd_width, u32(lanes_.size()) - first);
    for (;;) {
      for (u32 i : ordered(count)) {
        lane& l = lanes_[first + i];
        if (l.now == state::fresh || l.now == state::ready) resume(l);
        if (job_.stop) return;
      }
      if (!resolve_one(first, count)) return;
    }
  }

  // Of the lanes that wait at simd operations, those at the lowest line go on, all that wait at that very place.
  bool resolve_one(u32 first, u32 count) {
    lane* chosen = nullptr;
    for (u32 i = 0; i < count; ++i) {
      lane& l = lanes_[first + i];
      if (l.now == state::meeting && (!chosen || l.where.line < chosen->where.line)) chosen = &l;
    }
    if (!chosen) return false;
    meeting_first_ = first;
    rendezvous r{};
    r.where = &chosen->where;
    r.undefined = [](const rendezvous& at, u32 l, const char* what) { current->undefined(at, l, what); };
    for (u32 i = 0; i < simd_width; ++i) r.order[i] = u8(i);
    if (job_.shuffle_reductions) std::shuffle(r.order, r.order + simd_width, draw_);
    for (u32 i = 0; i < count; ++i) {
      lane& l = lanes_[first + i];
      if (l.now != state::meeting || !same_place(l, *chosen)) continue;
      r.active |= 1u << i;
      r.frames[i] = l.frame;
    }
    check_meeting(*chosen, first, count, r.active);
    if (chosen->resolve) chosen->resolve(r);
    if (counts_) counts_->operation(chosen->where.what);
#ifdef M2_TSAN
    simd_phase_[chosen->info.simdgroup] += 1;
#endif
    for (u32 i = 0; i < count; ++i)
      if (r.active >> i & 1) lanes_[first + i].now = state::ready;
    return true;
  }

  static bool same_place(const lane& a, const lane& b) {
    return a.resolve == b.resolve && a.where.line == b.where.line && a.where.column == b.where.column &&
           std::strcmp(a.where.file, b.where.file) == 0 && std::strcmp(a.where.what, b.where.what) == 0;
  }

  void check_meeting(const lane& chosen, u32 first, u32 count, u32 active) {
    u32 whole = count == simd_width ? ~0u : (1u << count) - 1;
    if (chosen.kind == meeting::matrix && count < simd_width)
      return report("partial matrix operation", chosen.where, std::string(chosen.where.what) + " in a simdgroup of " + std::to_string(count) + " threads", chosen.info, false);
    if (active == whole || chosen.kind == meeting::quad) return;
    u32 other = first + u32(__builtin_ctz(~active & whole));
    const lane& missing = lanes_[other];
    std::string who = "thread " + std::to_string(missing.info.index_in_threadgroup) + " of the simdgroup ";
    std::string words = std::string(chosen.where.what) + " by " + std::to_string(__builtin_popcount(active)) + " of " + std::to_string(count) + " threads: " + who;
    words += missing.now == state::done ? "has returned" : "waits at line " + std::to_string(missing.where.line);
    bool at_barrier = missing.now == state::barrier;
    const char* kind = chosen.kind == meeting::matrix    ? "partial matrix operation"
                       : chosen.kind == meeting::barrier ? "divergent barrier"
                       : at_barrier                      ? "simd operation against barrier"
                                                         : "partial simd operation";
    report(kind, chosen.where, words, chosen.info, false);
  }

  bool release_barrier() {
    const lane *waiting = nullptr, *gone = nullptr, *elsewhere = nullptr;
    for (lane& l : lanes_) {
      if (l.now == state::barrier) {
        if (!waiting) waiting = &l;
        else if (l.where.line != waiting->where.line) elsewhere = &l;
      } else if (!gone) {
        gone = &l;
      }
    }
    if (!waiting) return false;
    if (gone)
      report("divergent barrier", waiting->where, "thread " + std::to_string(gone->info.index_in_threadgroup) + " has returned and never comes to this barrier", waiting->info, false);
    if (elsewhere)
      report("divergent barrier", waiting->where, "thread " + std::to_string(elsewhere->info.index_in_threadgroup) + " waits at another barrier, in line " + std::to_string(elsewhere->where.line), waiting->info, false);
    phase_ += 1;
    if (counts_) counts_->operation(waiting->where.what);
    for (lane& l : lanes_)
      if (l.now == state::barrier) l.now = state::ready;
    return true;
  }

  void resume(lane& l) {
    if (l.now == state::fresh) {
      uint8_t* stack = stacks_.take();
      if (!stack) fault("out of memory", {"", 0, 0, ""}, "no memory is left for a thread's stack");
      prepare(l.ctx, stack, &group::begin);
#ifdef M2_TSAN
      l.ctx.fiber = __tsan_create_fiber(0);
      name_fiber(l);
#endif
    }
    running_ = &l;
    change(scheduler_, l.ctx);
    running_ = nullptr;
    if (l.now == state::done) {
      stacks_.give(l.ctx.stack);
      l.ctx.stack = nullptr;
#ifdef M2_TSAN
      __tsan_destroy_fiber(l.ctx.fiber);
#endif
    }
  }

#ifdef M2_TSAN
  static void name_fiber(lane& l) {
    extent p = l.info.position_in_threadgroup, g = l.info.threadgroup;
    std::string name = "Metal thread (" + std::to_string(p.x) + "," + std::to_string(p.y) + "," + std::to_string(p.z) + ") of threadgroup (" +
                       std::to_string(g.x) + "," + std::to_string(g.y) + "," + std::to_string(g.z) + ")";
    __tsan_set_fiber_name(l.ctx.fiber, name.c_str());
  }
#endif

  void wait(state now) {
    running_->now = now;
    change(running_->ctx, scheduler_);
  }

  static void begin() {
    group& here = *current;
#if defined(M2_ASAN)
    __sanitizer_finish_switch_fiber(nullptr, &here.scheduler_.bottom, &here.scheduler_.size);
#endif
    here.kernel_(here.job_.addresses.data(), here.memory_.data(), &here.running_->info);
#if defined(M2_TSAN)
    __tsan_release(&here.ended);
#endif
    here.running_->now = state::done;
    change(here.running_->ctx, here.scheduler_, true);
  }

  void report(const char* kind, const site& where, const std::string& what, const thread_info& who, bool fatal) {
    finding found{kind, where.file ? where.file : "", what, where.line, 0, 0, who.position_in_threadgroup, who.threadgroup, fatal};
    job_.report(found);
  }

  job& job_;
  entry kernel_;
  counters* counts_;
  context scheduler_;
  std::vector<lane> lanes_;
  u32 simdgroups_ = 0;
  u64 phase_ = 0;
  u32 meeting_first_ = 0;  // the first thread of the simdgroup whose operation is being computed
  lane* running_ = nullptr;
  std::mt19937_64 draw_;
  stack_pool stacks_;
  std::vector<std::pair<site, std::unique_ptr<block>>> variables_;
  std::vector<std::unique_ptr<block>> argument_blocks_, spent_;
  std::vector<void*> memory_;
  std::vector<block*> used_;
#ifdef M2_TSAN
 public:
  char ended = 0;

 private:
  std::vector<std::vector<lane>> spent_lanes_;
  block* arena_ = nullptr;
  size_t arena_used_ = 0;
  std::vector<std::unique_ptr<char[]>> fence_memory_;
  char *fences_ = nullptr, *simd_fences_ = nullptr;
  std::vector<u64> simd_phase_;
#endif
};

}  // namespace m2
