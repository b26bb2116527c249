// A launch, as the caller writes it and as its results go back: 64-bit words, then text, then bytes.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "interface.h"
#include "memory.h"

namespace m2 {

enum class ordering : u64 { forward, reverse, random };

// What is reported, once for each kind and place; `fatal` ends the launch.
struct finding {
  std::string kind, file, what;
  u32 line = 0;
  u64 count = 0, program_counter = 0;
  extent thread{}, group{};
  bool fatal = false;
};

class reader {
 public:
  reader(const uint8_t* data, size_t bytes) : at_(data), end_(data + bytes) {}
  u64 word() {
    u64 out = 0;
    if (size_t(end_ - at_) >= sizeof out) std::memcpy(&out, at_, sizeof out);
    at_ += sizeof out;
    return out;
  }
  extent three() {
    u32 x = u32(word()), y = u32(word()), z = u32(word());
    return {x, y, z};
  }
  const uint8_t* bytes(size_t count) {
    const uint8_t* out = at_;
    at_ += (count + 7) / 8 * 8;
    return out;
  }
  std::string text() {
    size_t count = word();
    return std::string(reinterpret_cast<const char*>(bytes(count)), count);
  }

 private:
  const uint8_t *at_, *end_;
};

class job {
 public:
  job(const uint8_t* data, size_t bytes) {
    reader in(data, bytes);
    grid = in.three();
    threadgroup = in.three();
    workers = u32(in.word());
    order = ordering(in.word());
    seed = in.word();
    fill = uint8_t(in.word());
    flush = in.word() != 0;
    shuffle_reductions = in.word() != 0;
    counted = in.word() != 0;
    u64 buffer_count = in.word(), memory_count = in.word();
    for (u64 i = 0; i < buffer_count; ++i) {
      std::string name = in.text();
      bool wanted = in.word() != 0, given = in.word() != 0;
      size_t size = in.word();
      buffers.emplace_back("buffer '" + name + "'", size);
      outputs.push_back(wanted);
      if (given) std::memcpy(buffers.back().data(), in.bytes(size), size);
      else std::memset(buffers.back().data(), fill, size);
    }
    for (u64 i = 0; i < memory_count; ++i) memory_bytes.push_back(in.word());
    for (auto& buffer : buffers) addresses.push_back(buffer.data());
  }

  extent groups() const {
    auto up = [](u32 a, u32 b) { return (a + b - 1) / b; };
    return {up(grid.x, threadgroup.x), up(grid.y, threadgroup.y), up(grid.z, threadgroup.z)};
  }

  void report(finding found) {
    std::lock_guard<std::mutex> held(lock_);
    auto key = std::make_tuple(found.kind, found.file, found.line);
    auto [at, fresh] = findings_.try_emplace(key, found);
    at->second.count += 1;
    if (found.fatal) stop = true;
  }

  // Findings, then counts, as lines of fields between tabs; then the buffers that were asked for.
  std::string result() {
    std::string text;
    for (auto& [key, f] : findings_) {
      auto three = [](extent e) { return std::to_string(e.x) + "," + std::to_string(e.y) + "," + std::to_string(e.z); };
      text += f.kind + "\t" + f.file + "\t" + std::to_string(f.line) + "\t" + std::to_string(f.count) + "\t" + three(f.thread) +
              "\t" + three(f.group) + "\t" + (f.fatal ? "1" : "0") + "\t" + std::to_string(f.program_counter) + "\t" + f.what + "\n";
    }
    std::string out;
    u64 words[3] = {u64(stop), u64(text.size()), u64(counts.size())};
    out.append(reinterpret_cast<const char*>(words), sizeof words);
    out += text;
    out += counts;
    for (size_t i = 0; i < buffers.size(); ++i)
      if (outputs[i]) out.append(reinterpret_cast<const char*>(buffers[i].data()), buffers[i].bytes());
    return out;
  }

  extent grid{}, threadgroup{};
  u32 workers = 1;
  ordering order = ordering::forward;
  u64 seed = 0;
  uint8_t fill = 0xff;
  bool flush = false, shuffle_reductions = false, counted = false;
  std::string counts;  // what `counters` found, once the launch has ended
  std::vector<block> buffers;
  std::vector<void*> addresses;
  std::vector<bool> outputs;
  std::vector<u64> memory_bytes;
  void (*finish)(job&) = nullptr;  // under a sanitizer nothing can be unwound: a fault ends the process
  std::atomic<bool> stop{false};
  std::atomic<u64> next_group{0};

 private:
  std::mutex lock_;
  std::map<std::tuple<std::string, std::string, u32>, finding> findings_;
};

}  // namespace m2
