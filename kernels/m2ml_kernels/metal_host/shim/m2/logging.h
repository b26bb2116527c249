// os_log: accepted, silent.
#pragma once

namespace metal {
struct os_log {
  constexpr os_log(const char*, const char*) {}
#define M2_LOG(name)           \
  template <class... A>        \
  void name(const char*, A...) const {}
  M2_LOG(log)
  M2_LOG(log_debug)
  M2_LOG(log_info)
  M2_LOG(log_error)
  M2_LOG(log_fault)
#undef M2_LOG
};
}  // namespace metal
