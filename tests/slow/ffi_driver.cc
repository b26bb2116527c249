// Calls kernels as XLA would, without XLA: requests come on standard input, results go to standard output.
//
// Included behind a file of kernels and `kHandlers`, which lists them. Threads are this one: XLA is said to have three,
// and what they are asked to do is done at once, so that kernels divide their work. Behind every array lie bytes that
// no kernel may touch (none under a sanitizer, which sees the end itself); results begin as NaN.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

#ifndef M2_GUARD
#define M2_GUARD 64
#endif
constexpr size_t kGuard = M2_GUARD;
constexpr unsigned char kUntouched = 0xA5, kNaN = 0xFF;

struct Failure { std::string message; };

XLA_FFI_Error* create(XLA_FFI_Error_Create_Args* args) { return reinterpret_cast<XLA_FFI_Error*>(new Failure{args->message}); }
void destroy(XLA_FFI_Error_Destroy_Args* args) { delete reinterpret_cast<Failure*>(args->error); }
XLA_FFI_Error* count(XLA_FFI_ThreadPool_NumThreads_Args* args) { *args->num_threads = 3; return nullptr; }
XLA_FFI_Error* schedule(XLA_FFI_ThreadPool_Schedule_Args* args) { args->task(args->data); return nullptr; }

void read(void* to, size_t bytes) {
  if (bytes && std::fread(to, 1, bytes, stdin) != bytes) std::exit(0);
}
int64_t read_number() { int64_t n; read(&n, sizeof n); return n; }
std::string read_text() { std::string text(read_number(), ' '); read(&text[0], text.size()); return text; }

struct Held {
  XLA_FFI_Buffer buffer{};
  std::vector<int64_t> dims;
  unsigned char* bytes;
  size_t size;

  explicit Held(bool given) {
    buffer.struct_size = XLA_FFI_Buffer_STRUCT_SIZE;
    buffer.dtype = static_cast<XLA_FFI_DataType>(read_number());
    dims.resize(read_number());
    read(dims.data(), dims.size() * sizeof(int64_t));
    size = read_number();
    void* memory = nullptr;  // aligned_alloc would round the size up
    if (posix_memalign(&memory, 64, size + kGuard)) std::abort();
    bytes = static_cast<unsigned char*>(memory);
    std::memset(bytes, kNaN, size);
    std::memset(bytes + size, kUntouched, kGuard);
    if (given) read(bytes, size);
    buffer.data = bytes, buffer.rank = dims.size(), buffer.dims = dims.data();
  }
  bool whole() const {
    for (size_t i = 0; i < kGuard; ++i) if (bytes[size + i] != kUntouched) return false;
    return true;
  }
};

std::vector<Held*> read_arrays(bool given) {
  std::vector<Held*> arrays(read_number());
  for (auto& array : arrays) array = new Held(given);
  return arrays;
}

std::vector<void*> buffers(const std::vector<Held*>& arrays) {
  std::vector<void*> found;
  for (auto* array : arrays) found.push_back(&array->buffer);
  return found;
}

struct Attribute {
  std::string name;
  int64_t dtype, value;
  XLA_FFI_ByteSpan span;
  XLA_FFI_Scalar scalar;
};

std::string run(const std::string& name, const std::vector<Held*>& in, const std::vector<Held*>& out) {
  std::vector<Attribute> attributes(read_number());
  for (auto& a : attributes) a.name = read_text(), a.dtype = read_number(), a.value = read_number();
  std::vector<XLA_FFI_AttrType> types(attributes.size(), XLA_FFI_AttrType_SCALAR);
  std::vector<XLA_FFI_ByteSpan*> names;
  std::vector<void*> values;
  for (auto& a : attributes) {
    a.span = {a.name.data(), a.name.size()};
    a.scalar = {static_cast<XLA_FFI_DataType>(a.dtype), &a.value};
    names.push_back(&a.span), values.push_back(&a.scalar);
  }
  XLA_FFI_Api api{};
  api.XLA_FFI_Error_Create = create, api.XLA_FFI_Error_Destroy = destroy;
  api.XLA_FFI_ThreadPool_NumThreads = count, api.XLA_FFI_ThreadPool_Schedule = schedule;
  auto arguments = buffers(in), results = buffers(out);
  XLA_FFI_CallFrame frame{};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE, frame.api = &api;
  frame.args.size = arguments.size(), frame.args.args = arguments.data();
  frame.rets.size = results.size(), frame.rets.rets = results.data();
  frame.attrs.size = values.size(), frame.attrs.types = types.data();
  frame.attrs.names = names.data(), frame.attrs.attrs = values.data();
  for (const auto& handler : kHandlers) {
    if (name != handler.name) continue;
    if (auto* error = handler.run(&frame)) return reinterpret_cast<Failure*>(error)->message;
    for (auto* array : in) if (!array->whole()) return name + " wrote behind an argument";
    for (auto* array : out) if (!array->whole()) return name + " wrote behind a result";
    return "";
  }
  return "there is no handler " + name;
}

void write(const void* from, size_t bytes) { std::fwrite(from, 1, bytes, stdout); }

}  // namespace

int main() {
  for (;;) {
    const std::string name = read_text();
    const auto in = read_arrays(true), out = read_arrays(false);
    const std::string said = run(name, in, out);
    const int64_t length = said.size();
    write(&length, sizeof length), write(said.data(), said.size());
    for (auto* array : out) write(array->bytes, array->size);
    std::fflush(stdout);
    for (auto* array : in) std::free(array->bytes), delete array;
    for (auto* array : out) std::free(array->bytes), delete array;
  }
}
