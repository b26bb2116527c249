// The runtime: a launch's groups on several OS threads, and what happens when a kernel touches what is not its own.
#include <csignal>
#include <dlfcn.h>
#include <thread>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "group.h"

namespace m2 {

thread_local group* group::current = nullptr;

static const host functions = {
    [](resolver resolve, void* frame, const site* where, meeting kind) { group::current->meet(resolve, frame, *where, kind); },
    [](u32 flags, const site* where) { group::current->barrier(flags, *where); },
    [](const site* where, u64 bytes, u64 alignment) { return group::current->variable(*where, bytes, alignment); },
    [](const site* where, const char* what) { group::current->fault("undefined behaviour", *where, what); },
    []() -> const thread_info* { return &group::current->self(); },
    [](const void* pc, const volatile void* address, u32 bytes, access how) {
      if (group::current) group::current->touched(u64(pc), static_cast<const uint8_t*>(const_cast<const void*>(address)), bytes, how);
    },
    [](const void* pc) {
      if (group::current) group::current->entered(u64(pc));
    },
};

#if !defined(M2_ASAN) && !defined(M2_TSAN)
static u64 program_counter(void* ucontext) {
  auto* u = static_cast<ucontext_t*>(ucontext);
#if defined(__APPLE__) && defined(__aarch64__)
  return u->uc_mcontext->__ss.__pc;
#elif defined(__APPLE__)
  return u->uc_mcontext->__ss.__rip;
#elif defined(__aarch64__)
  return u->uc_mcontext.pc;
#else
  return u64(u->uc_mcontext.gregs[REG_RIP]);
#endif
}

static struct sigaction earlier[3];
static const int caught[3] = {SIGSEGV, SIGBUS, SIGFPE};

static void on_signal(int number, siginfo_t* info, void* ucontext) {
  group* here = group::current;
  if (!here || !here->runs()) {  // not a kernel's doing: what was installed before decides
    for (int i = 0; i < 3; ++i)
      if (caught[i] == number) sigaction(number, &earlier[i], nullptr);
    raise(number);
    return;
  }
  u64 pc = program_counter(ucontext), offset = 0;
  Dl_info library;
  if (dladdr(reinterpret_cast<void*>(pc), &library)) offset = pc - reinterpret_cast<u64>(library.dli_fbase);
  if (number == SIGFPE) here->fault("undefined behaviour", {"", 0, 0, ""}, "an integer is divided by zero", offset);
  std::string words;
  if (!here->describe(static_cast<uint8_t*>(info->si_addr), words)) words = "at an address that belongs to no buffer";
  here->fault("out of bounds", {"", 0, 0, ""}, "an access " + words, offset);
}

// While it lives, faults of kernels are reported instead of ending the process.
class catching {
 public:
  catching() {
    struct sigaction action {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 3; ++i) sigaction(caught[i], &action, &earlier[i]);
  }
  ~catching() {
    for (int i = 0; i < 3; ++i) sigaction(caught[i], &earlier[i], nullptr);
  }

 private:
  std::unique_lock<std::mutex> alone_{launching()};
  static std::mutex& launching() {
    static std::mutex one;
    return one;
  }
};

class signal_stack {
 public:
  signal_stack() : memory_(new char[bytes]) {
    stack_t own{};
    own.ss_sp = memory_.get();
    own.ss_size = bytes;
    sigaltstack(&own, &earlier_);
  }
  ~signal_stack() { sigaltstack(&earlier_, nullptr); }

 private:
  static constexpr size_t bytes = 64 * 1024;
  std::unique_ptr<char[]> memory_;
  stack_t earlier_{};
};
#else
struct catching {};
struct signal_stack {};
#endif

// Denormals as zero, for this OS thread, while it lives.
class flushing {
 public:
  explicit flushing(bool on) {
#if defined(__x86_64__)
    before_ = _mm_getcsr();
    if (on) _mm_setcsr(before_ | 0x8040);
#elif defined(__aarch64__)
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    u64 now = before_ | (on ? 1ull << 24 : 0);
    asm volatile("msr fpcr, %0" : : "r"(now));
#endif
  }
  ~flushing() {
#if defined(__x86_64__)
    _mm_setcsr(before_);
#elif defined(__aarch64__)
    asm volatile("msr fpcr, %0" : : "r"(before_));
#endif
  }

 private:
#if defined(__x86_64__)
  unsigned before_ = 0;
#else
  u64 before_ = 0;
#endif
};

static std::vector<u64> group_order(const job& work) {
  std::vector<u64> out(volume(work.groups()));
  std::iota(out.begin(), out.end(), 0);
  if (work.order == ordering::reverse) std::reverse(out.begin(), out.end());
  if (work.order == ordering::random) std::shuffle(out.begin(), out.end(), std::mt19937_64(work.seed));
  return out;
}

static void worker(job& work, entry kernel, const std::vector<u64>& order, counters* counts = nullptr) {
  signal_stack stack;
  flushing denormals(work.flush);
  group here(work, kernel, counts);
  group::current = &here;
  if (sigsetjmp(here.escape, 1) == 0) {
    for (u64 next; !work.stop && (next = work.next_group++) < order.size();)
      here.run(position(order[next], work.groups()), order[next]);
  } else {
    here.abandon();
  }
#ifdef M2_TSAN
  __tsan_acquire(&here.ended);
#endif
  group::current = nullptr;
}

static void run(job& work, void* library) {
  *static_cast<const host**>(dlsym(library, "m2_host")) = &functions;
  auto kernel = reinterpret_cast<entry>(dlsym(library, "m2_entry"));
  auto order = group_order(work);
  catching faults;
  std::vector<std::thread> others;
  std::unique_ptr<counters> counts = work.counted ? std::make_unique<counters>(work) : nullptr;
  if (counts) work.workers = 1;
  for (u32 i = 1; i < work.workers && i < order.size(); ++i) others.emplace_back([&] { worker(work, kernel, order); });
  worker(work, kernel, order, counts.get());
  for (auto& other : others) other.join();
  Dl_info code;
  if (counts && dladdr(reinterpret_cast<void*>(kernel), &code)) work.counts = counts->text(u64(code.dli_fbase));
  std::string words;
  for (auto& buffer : work.buffers)
    if (!buffer.intact(words)) work.report({"out of bounds", "", "a write " + words});
}

}  // namespace m2

#ifndef M2_PROGRAM
// Run a launch; the result is to be freed with m2_free. `library` is a handle of dlopen.
extern "C" uint8_t* m2_run(void* library, const uint8_t* data, size_t bytes, size_t* result_bytes) {
  m2::job work(data, bytes);
  m2::run(work, library);
  std::string result = work.result();
  auto* out = static_cast<uint8_t*>(std::malloc(result.size()));
  std::memcpy(out, result.data(), result.size());
  *result_bytes = result.size();
  return out;
}
extern "C" void m2_free(uint8_t* result) { std::free(result); }
#else
#ifdef M2_ASAN
#include <sanitizer/asan_interface.h>
#endif
#include <cstdio>
#include <fstream>
#include <iterator>

static const char* result_path;

static void write_result(m2::job& work) {
  std::string result = work.result();
  std::ofstream(result_path, std::ios::binary).write(result.data(), std::streamsize(result.size()));
}

// host LIBRARY JOB RESULT: run the job of one file, and write its result to another.
int main(int count, char** arguments) {
  if (count != 4) return 2;
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (!library) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 3;
  }
  std::ifstream file(arguments[2], std::ios::binary);
  std::string data((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  result_path = arguments[3];
  m2::job work(reinterpret_cast<const uint8_t*>(data.data()), data.size());
#ifdef M2_ASAN
  __asan_set_error_report_callback([](const char*) {
    auto* address = static_cast<uint8_t*>(__asan_get_report_address());
    if (m2::group::current) std::fprintf(stderr, "Metal: %s\n", m2::group::current->account(address).c_str());
  });
#endif
#if defined(M2_ASAN) || defined(M2_TSAN)
  work.workers = 1;
  work.finish = [](m2::job& at) {
    write_result(at);
    _exit(0);
  };
#endif
  m2::run(work, library);
  write_result(work);
}
#endif
