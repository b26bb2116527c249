// Fibers: stacks that one OS thread runs by turns. A switch saves the registers that a call must keep, and no others.
#pragma once
#include <cstdint>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#if defined(M2_ASAN)
#include <sanitizer/common_interface_defs.h>
#elif defined(M2_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace m2 {

extern "C" void m2_switch(void** save, void* load) asm("m2_switch");
#if defined(__x86_64__)
asm(R"(
.text
.globl m2_switch
m2_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
constexpr int saved_words = 7, return_word = 6;
constexpr int entry_words = 1;  // between a stack's aligned end and where a function begins: its return address
#elif defined(__aarch64__)
asm(R"(
.text
.globl m2_switch
m2_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
constexpr int saved_words = 20, return_word = 11;
constexpr int entry_words = 0;  // a function begins with an aligned stack
#else
#error "the Metal host runs on x86-64 and arm64"
#endif

constexpr size_t stack_bytes = 128 * 1024;
constexpr size_t guard_bytes = 1024 * 1024;  // below a stack; wide, since one large frame steps over a single page

inline size_t page_bytes() {
  static const size_t bytes = size_t(sysconf(_SC_PAGESIZE));
  return bytes;
}

// Stacks with inaccessible memory below each; a fiber that ends gives its stack to the next one.
class stack_pool {
 public:
  stack_pool() = default;
  stack_pool(const stack_pool&) = delete;
  ~stack_pool() {
    for (uint8_t* stack : free_) release(stack);
  }
  uint8_t* take() {
    if (!free_.empty()) {
      uint8_t* stack = free_.back();
      free_.pop_back();
      return stack;
    }
    void* made = mmap(nullptr, stack_bytes + guard_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED) return nullptr;
    mprotect(made, guard_bytes, PROT_NONE);
    return static_cast<uint8_t*>(made) + guard_bytes;
  }
  void give(uint8_t* stack) {
#ifdef M2_TSAN
    release(stack);  // unmapped memory is forgotten: the next fiber's use of it is no race
#else
    free_.push_back(stack);
#endif
  }

 private:
  static void release(uint8_t* stack) { munmap(stack - guard_bytes, stack_bytes + guard_bytes); }
  std::vector<uint8_t*> free_;
};

// One side of a switch: where its registers lie, and what a sanitizer calls it.
struct context {
  void* registers = nullptr;
  uint8_t* stack = nullptr;
#if defined(M2_ASAN)
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
#elif defined(M2_TSAN)
  void* fiber = nullptr;
#endif
};

inline void prepare(context& c, uint8_t* stack, void (*begin)()) {
  auto** top = reinterpret_cast<void**>(stack + stack_bytes) - 2 - saved_words + entry_words;
  std::memset(top, 0, sizeof(void*) * (saved_words + 1));
  top[return_word] = reinterpret_cast<void*>(begin);
  c.registers = top;
  c.stack = stack;
#if defined(M2_ASAN)
  c.fake_stack = nullptr;
  c.bottom = stack;
  c.size = stack_bytes;
#endif
}

// Leave `from` for `to`; `ends` says that `from` is never entered again.
inline void change(context& from, context& to, [[maybe_unused]] bool ends = false) {
#if defined(M2_ASAN)
  __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, to.bottom, to.size);
  m2_switch(&from.registers, to.registers);
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#elif defined(M2_TSAN)
  __tsan_switch_to_fiber(to.fiber, __tsan_switch_to_fiber_no_sync);
  m2_switch(&from.registers, to.registers);
#else
  m2_switch(&from.registers, to.registers);
#endif
}

}  // namespace m2
