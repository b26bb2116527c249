// Memory that ends at a page nobody may touch, with bytes before and after it that must stay as they were.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "fiber.h"

namespace m2 {

class block {
 public:
  static constexpr size_t grain = 16;  // kernels may rely on buffers being aligned
  static constexpr uint8_t canary = 0xb7;
  static constexpr size_t nearby = 64;  // how far around memory of malloc an address is still its own

  block(std::string name, size_t bytes) : name_(std::move(name)), bytes_(bytes) {
#ifdef M2_ASAN
    data_ = static_cast<uint8_t*>(std::malloc(std::max<size_t>(bytes, 1)));
#else
    size_t held = (std::max<size_t>(bytes, 1) + grain - 1) / grain * grain;
    mapped_ = (held + page_bytes() - 1) / page_bytes() * page_bytes();
    void* made = mmap(nullptr, mapped_ + 2 * page_bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED) throw std::bad_alloc();
    start_ = static_cast<uint8_t*>(made) + page_bytes();
    mprotect(start_, mapped_, PROT_READ | PROT_WRITE);
    data_ = start_ + mapped_ - held;
    std::memset(start_, canary, mapped_);
#endif
  }
  // Memory that somebody else holds.
  block(std::string name, size_t bytes, uint8_t* place) : name_(std::move(name)), bytes_(bytes), owned_(false), data_(place) {}
  block(const block&) = delete;
  block(block&& other) noexcept { *this = std::move(other); }
  block& operator=(block&& other) noexcept {
    std::swap(name_, other.name_);
    std::swap(bytes_, other.bytes_);
    std::swap(mapped_, other.mapped_);
    std::swap(start_, other.start_);
    std::swap(data_, other.data_);
    std::swap(owned_, other.owned_);
    return *this;
  }
  ~block() {
#ifdef M2_ASAN
    if (owned_) std::free(data_);
#else
    if (start_) munmap(start_ - page_bytes(), mapped_ + 2 * page_bytes());
#endif
  }

  // Every byte `value`; not memset, which ThreadSanitizer would take for a write by the thread that comes first.
  void fill(uint8_t value) {
    auto* to = static_cast<volatile uint8_t*>(data_);
    for (size_t i = 0; i < bytes_; ++i) to[i] = value;
  }
  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  const std::string& name() const { return name_; }

  // Whether an address lies in the pages around, and how it is to be described.
  bool describes(const uint8_t* address, std::string& words) const {
    const uint8_t* from = start_ ? start_ - page_bytes() : data_ - nearby;
    const uint8_t* to = start_ ? start_ + mapped_ + page_bytes() : data_ + bytes_ + nearby;
    if (address < from || address >= to || (address >= data_ && address < data_ + bytes_)) return false;
    bool before = address < data_;
    size_t distance = before ? size_t(data_ - address) : size_t(address - data_ - bytes_);
    words = std::to_string(distance) + (before ? " bytes before " : " bytes past the end of ") + name_;
    return true;
  }
  // Whether the bytes around the data are still the canary; if not, how far off the first change is.
  bool intact(std::string& words) const {
    if (!start_) return true;
    for (const uint8_t* at = data_; at-- > start_;)
      if (*at != canary) return !describes(at, words);
    for (const uint8_t* at = data_ + bytes_; at < start_ + mapped_; ++at)
      if (*at != canary) return !describes(at, words);
    return true;
  }

 private:
  std::string name_;
  size_t bytes_ = 0, mapped_ = 0;
  bool owned_ = true;
  uint8_t* start_ = nullptr;
  uint8_t* data_ = nullptr;
};

}  // namespace m2
