// What a launch costs: bytes by buffer, how each simdgroup's accesses lie in memory, operations, and blocks of code.
#pragma once
#include <map>
#include <set>
#include <unordered_map>

#include "job.h"

namespace m2 {

constexpr u64 line_bytes = 128;                 // of the caches of Apple's GPUs
constexpr u64 banks = 32, bank_bytes = 4;       // of threadgroup memory; Apple documents none: as other GPUs have them
constexpr u32 widest = 16;                      // bytes that one thread moves at once

// One access of one thread. Region: the number of a buffer, or `shared` for threadgroup memory.
struct touch {
  u64 pc, at;
  u32 bytes;
  int region;
  access how;
};
constexpr int shared = -1, elsewhere = -2;

// The accesses of whole simdgroups made at one place of the code.
struct place {
  u64 count = 0, bytes = 0;
  u64 spans = 0, least_spans = 0;  // cache lines, or turns of the banks, that they took and that their bytes need
};

class counters {
 public:
  explicit counters(job& work) : job_(work), buffers_(work.buffers.size()) {
    for (size_t i = 0; i < buffers_.size(); ++i) buffers_[i].touched.resize(work.buffers[i].bytes());
  }

  int region_of(const uint8_t* address) const {
    for (size_t i = 0; i < job_.buffers.size(); ++i) {
      const block& buffer = job_.buffers[i];
      if (address >= buffer.data() && address < buffer.data() + buffer.bytes()) return int(i);
    }
    return elsewhere;
  }

  // By thread `index` of the threadgroup.
  void touched(u32 index, touch t) {
    traffic& into = t.region == shared ? shared_ : buffers_[size_t(t.region)];
    bool loads = t.how != access::store, stores = t.how != access::load;
    into.loaded += loads ? t.bytes : 0;
    into.stored += stores ? t.bytes : 0;
    if (t.region >= 0) {
      u64 offset = t.at - u64(job_.buffers[size_t(t.region)].data());
      for (u64 i = offset; i < std::min<u64>(offset + t.bytes, into.touched.size()); ++i)
        into.touched[i] |= uint8_t((loads ? 1 : 0) | (stores ? 2 : 0));
    }
    if (index >= threads_.size()) threads_.resize(index + 1);
    auto& log = threads_[index];
    // Neighbours that follow each other are one access, as a GPU's compiler makes them; a loop's steps are not.
    if (!log.empty()) {
      touch& last = log.back();
      if (last.region == t.region && last.how == t.how && last.at + last.bytes == t.at && last.pc != t.pc && last.bytes + t.bytes <= widest) {
        last.bytes += t.bytes;
        last.pc = t.pc;
        return;
      }
    }
    log.push_back(t);
  }

  // All threads of the group have come to one point: what each did at the same place, as often before, was done at once.
  void settle() {
    for (size_t first = 0; first < threads_.size(); first += simd_width) {
      std::map<std::pair<u64, u64>, std::vector<touch>> together;
      for (size_t i = first; i < std::min<size_t>(first + simd_width, threads_.size()); ++i) {
        std::unordered_map<u64, u64> times;
        for (const touch& t : threads_[i]) together[{t.pc, times[t.pc]++}].push_back(t);
        threads_[i].clear();
      }
      for (auto& [key, every] : together) add(every);
    }
  }

  void operation(const char* what) { operations_[what] += 1; }
  void entered(u64 pc) { blocks_[pc] += 1; }
  void threadgroup_memory(u64 bytes) { threadgroup_bytes_ = std::max(threadgroup_bytes_, bytes); }

  // Lines of fields between tabs. `base` is where the kernel's code begins.
  std::string text(u64 base) const {
    std::string out;
    auto line = [&](std::initializer_list<std::string> fields) {
      for (auto& field : fields) out += field + "\t";
      out.back() = '\n';
    };
    auto n = [](u64 x) { return std::to_string(x); };
    for (size_t i = 0; i < buffers_.size(); ++i) {
      u64 loaded = 0, stored = 0, either = 0;
      for (uint8_t how : buffers_[i].touched) loaded += how & 1, stored += how >> 1, either += how != 0;
      line({"buffer", n(i), n(buffers_[i].loaded), n(buffers_[i].stored), n(loaded), n(stored), n(either)});
    }
    line({"threadgroup", n(threadgroup_bytes_), n(shared_.loaded), n(shared_.stored)});
    for (auto& [what, count] : operations_) line({"operation", what, n(count)});
    for (auto& [pc, count] : blocks_) line({"block", n(pc - base), n(count)});
    for (auto& [key, p] : places_) {
      auto [pc, region, how] = key;
      line({"place", n(pc - base), std::to_string(region), n(u64(how)), n(p.count), n(p.bytes), n(p.spans), n(p.least_spans)});
    }
    return out;
  }

 private:
  struct traffic {
    u64 loaded = 0, stored = 0;
    std::vector<uint8_t> touched;
  };

  void add(const std::vector<touch>& every) {
    const touch& first = every.front();
    bool in_banks = first.region == shared;
    u64 unit = in_banks ? bank_bytes : line_bytes;
    std::set<u64> units, bytes;
    u64 moved = 0;
    for (const touch& t : every) {
      moved += t.bytes;
      for (u64 at = t.at; at < t.at + t.bytes; ++at) {
        units.insert(at / unit);
        if (!in_banks) bytes.insert(at);
      }
    }
    place& into = places_[{first.pc, first.region, first.how}];
    into.count += 1;
    into.bytes += moved;
    if (in_banks) {
      u64 words[banks] = {}, turns = 0;
      for (u64 word : units) turns = std::max(turns, ++words[word % banks]);
      into.spans += turns;
      into.least_spans += (units.size() + banks - 1) / banks;
    } else {
      into.spans += units.size();
      into.least_spans += (bytes.size() + line_bytes - 1) / line_bytes;
    }
  }

  job& job_;
  std::vector<traffic> buffers_;
  traffic shared_;
  u64 threadgroup_bytes_ = 0;
  std::vector<std::vector<touch>> threads_;
  std::map<std::tuple<u64, int, access>, place> places_;
  std::map<std::string, u64> operations_;
  std::unordered_map<u64, u64> blocks_;
};

}  // namespace m2
