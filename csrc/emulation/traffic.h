// Bytes that a kernel loads from and stores to each tensor.
//
// Counted in the build called "traffic" only: it compiles the kernels as for ThreadSanitizer, which
// puts a call before every access to memory, and links traffic.cpp in place of ThreadSanitizer.
#pragma once

#include <cstddef>
#include <string>

namespace traffic {

#if defined(VILA_MC_TRAFFIC)
void count(const std::string& name, const void* memory, size_t bytes);
void print();  // a line for each tensor on stdout: name, bytes loaded, bytes stored
#else
inline void count(const std::string&, const void*, size_t) {}
inline void print() {}
#endif

}  // namespace traffic
