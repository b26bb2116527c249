// What a compiled kernel and the runtime say to each other. Plain C++ without any library header: kernels see this too.
#pragma once

namespace m2 {

using u8 = unsigned char;
using u32 = unsigned int;
using u64 = unsigned long long;

constexpr u32 simd_width = 32;
constexpr u32 max_threads = 1024;
constexpr u32 max_threadgroup_bytes = 32768;

// Where in the Metal source something happens, and what.
struct site {
  const char* file;
  u32 line;
  u32 column;
  const char* what;
};

struct extent {
  u32 x, y, z;
};

// What one Metal thread is told of itself.
struct thread_info {
  extent position_in_grid, position_in_threadgroup, threadgroup;
  extent threads_per_threadgroup, dispatch_threads_per_threadgroup, threads_per_grid, threadgroups_per_grid;
  u32 index_in_threadgroup, lane, simdgroup, simdgroups_per_threadgroup, dispatch_simdgroups_per_threadgroup;
};

// The lanes that meet at one simd operation. frames[l] points into the stack of lane l.
struct rendezvous {
  void* frames[simd_width];
  u32 active;                // bit l: lane l takes part
  u8 order[simd_width];      // in which order a reduction takes the lanes
  const site* where;
  void (*undefined)(const rendezvous&, u32 lane, const char* what);  // report that a lane asked for what is undefined
};

using resolver = void (*)(rendezvous&);

enum class meeting : u32 { simd, quad, matrix, barrier };
enum class access : u32 { load, store, update };

// The runtime's functions, as the kernel calls them.
struct host {
  void (*meet)(resolver, void* frame, const site*, meeting);
  void (*threadgroup_barrier)(u32 flags, const site*);
  void* (*threadgroup_variable)(const site*, u64 bytes, u64 alignment);
  void (*fault)(const site*, const char* what);  // report, and end the launch
  const thread_info* (*self)();
  // Of kernels that are compiled to be counted: an access, and the entry of a block of code, from the place `pc`.
  void (*access)(const void* pc, const volatile void* address, u32 bytes, m2::access how);
  void (*block)(const void* pc);
};

using entry = void (*)(void* const* buffers, void* const* threadgroup_memory, const thread_info*);

}  // namespace m2
