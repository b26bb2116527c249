// How XLA calls a kernel: its arguments, results, static arguments and threads, on XLA's C interface alone.
//
// M2ML_KERNEL(name) { ... } defines the handler `name`; its body sees `call`. Only the plain C header of the
// interface is included: the C++ one takes seconds to compile.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>

#include "xla/ffi/api/c_api.h"

namespace m2ml {

enum class Type { f32 = XLA_FFI_DataType_F32, f16 = XLA_FFI_DataType_F16, bf16 = XLA_FFI_DataType_BF16 };

// One array: row-major, `rank` axes.
struct Array {
  XLA_FFI_Buffer* buffer;

  template <class T> T* data() const { return static_cast<T*>(buffer->data); }
  int64_t rank() const { return buffer->rank; }
  // Size of an axis; negative axes count from the end.
  int64_t size(int64_t axis) const { return buffer->dims[axis < 0 ? axis + buffer->rank : axis]; }
  int64_t count() const {
    int64_t n = 1;
    for (int64_t i = 0; i < buffer->rank; ++i) n *= buffer->dims[i];
    return n;
  }
  // The elements before axis `axis`: how many rows there are when the axes from it on are one row.
  int64_t rows(int64_t axis) const {
    int64_t n = 1, end = axis < 0 ? axis + buffer->rank : axis;
    for (int64_t i = 0; i < end; ++i) n *= buffer->dims[i];
    return n;
  }
  Type type() const { return static_cast<Type>(buffer->dtype); }
};

class Call {
 public:
  explicit Call(XLA_FFI_CallFrame* frame) : frame_(frame) {}

  int64_t arguments() const { return frame_->args.size; }
  Array in(int64_t i) const { return {static_cast<XLA_FFI_Buffer*>(frame_->args.args[i])}; }
  Array out(int64_t i) const { return {static_cast<XLA_FFI_Buffer*>(frame_->rets.rets[i])}; }

  float number(const char* name) const { return scalar<float>(name, XLA_FFI_DataType_F32); }
  int64_t integer(const char* name) const { return scalar<int64_t>(name, XLA_FFI_DataType_S64); }

  int64_t threads() const {
    int64_t count = 1;
    XLA_FFI_ThreadPool_NumThreads_Args args{XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, nullptr, frame_->ctx, &count};
    return ignore(frame_->api->XLA_FFI_ThreadPool_NumThreads(&args)) ? 1 : std::max<int64_t>(count, 1);
  }

  // Runs work(begin, end) over [0, count) in parts of at least `grain`, on XLA's own threads and this one. It
  // returns when all parts are done, whether or not a thread of the pool ever came to help.
  template <class Work> void parallel(int64_t count, int64_t grain, const Work& work) const {
    if (count <= 0) return;
    grain = std::max<int64_t>(grain, 1);
    const int64_t helpers = count <= grain ? 0 : std::min(threads(), (count + grain - 1) / grain) - 1;
    if (helpers <= 0) return work(int64_t{0}, count), publish();
    const int64_t part = std::max(grain, count / (4 * (helpers + 1)));
    auto shared = std::make_shared<Shared>();
    shared->parts = (count + part - 1) / part;
    shared->run = [](const void* w, int64_t i, int64_t size, int64_t n) {
      (*static_cast<const Work*>(w))(i * size, std::min(n, (i + 1) * size));
    };
    shared->work = &work, shared->part = part, shared->count = count;
    for (int64_t i = 0; i < helpers; ++i) schedule(shared);
    shared->help();
    while (shared->done.load(std::memory_order_acquire) < shared->parts) pause();
  }

  // Runs the task on one of XLA's threads, when one comes free; perhaps never.
  template <class Task> void later(const Task& work) const {
    auto* kept = new Task(work);
    XLA_FFI_Task* task = [](void* data) {
      std::unique_ptr<Task> owned(static_cast<Task*>(data));
      (*owned)();
    };
    XLA_FFI_ThreadPool_Schedule_Args args{XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, nullptr, frame_->ctx, task, kept};
    if (ignore(frame_->api->XLA_FFI_ThreadPool_Schedule(&args))) delete kept;
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

 private:
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
    int64_t parts, part, count;
    const void* work;
    void (*run)(const void*, int64_t, int64_t, int64_t);
    void help() {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < parts;) {
        run(work, i, part, count);
        publish();
        done.fetch_add(1, std::memory_order_release);
      }
    }
  };

  // Stores that go past the cache (vector.h) may otherwise be seen after later ones.
  static void publish() {
#if defined(__x86_64__)
    __builtin_ia32_sfence();
#endif
  }

  void schedule(const std::shared_ptr<Shared>& shared) const {
    later([shared] { shared->help(); });
  }

  bool ignore(XLA_FFI_Error* error) const {
    if (!error) return false;
    XLA_FFI_Error_Destroy_Args args{XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, nullptr, error};
    frame_->api->XLA_FFI_Error_Destroy(&args);
    return true;
  }

  template <class T> T scalar(const char* name, XLA_FFI_DataType dtype) const {
    const XLA_FFI_Attrs& attrs = frame_->attrs;
    for (int64_t i = 0; i < attrs.size; ++i) {
      const XLA_FFI_ByteSpan& span = *attrs.names[i];
      if (std::strlen(name) != span.len || std::memcmp(name, span.ptr, span.len)) continue;
      auto* value = static_cast<XLA_FFI_Scalar*>(attrs.attrs[i]);
      if (attrs.types[i] != XLA_FFI_AttrType_SCALAR || value->dtype != dtype) break;
      return *static_cast<T*>(value->value);
    }
    throw std::invalid_argument(std::string("no static argument ") + name + " of the expected type");
  }

  XLA_FFI_CallFrame* frame_;
};

inline XLA_FFI_Error* handle(XLA_FFI_CallFrame* frame, void (*body)(const Call&)) {
  if (frame->extension_start && frame->extension_start->type == XLA_FFI_Extension_Metadata) {
    auto* metadata = reinterpret_cast<XLA_FFI_Metadata_Extension*>(frame->extension_start)->metadata;
    metadata->api_version.major_version = XLA_FFI_API_MAJOR;
    metadata->api_version.minor_version = XLA_FFI_API_MINOR;
    return nullptr;
  }
  try {
    body(Call(frame));
    return nullptr;
  } catch (const std::exception& error) {
    XLA_FFI_Error_Create_Args args{XLA_FFI_Error_Create_Args_STRUCT_SIZE, nullptr, error.what(), XLA_FFI_Error_Code_INTERNAL};
    return frame->api->XLA_FFI_Error_Create(&args);
  }
}

}  // namespace m2ml

#define M2ML_KERNEL(name)                                                                                  \
  static void name##_body(const m2ml::Call& call);                                                         \
  extern "C" XLA_FFI_Error* name(XLA_FFI_CallFrame* frame) { return m2ml::handle(frame, name##_body); }    \
  static void name##_body(const m2ml::Call& call)
