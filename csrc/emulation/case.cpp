#include "case.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

namespace vila_mc {
namespace {

[[noreturn]] void refuse(const std::string& what) {
    std::fprintf(stderr, "error: %s\n", what.c_str());
    std::exit(2);
}

unsigned char* allocate(size_t bytes) {
    // malloc aligns to 16 bytes, as every tensor of torch is.
    auto* memory = static_cast<unsigned char*>(std::malloc(bytes > 0 ? bytes : 1));
    if (memory == nullptr) refuse("out of memory for a tensor of " + std::to_string(bytes) + " B");
    std::memset(memory, 0xff, bytes);
    return memory;
}

}  // namespace

Case::Case(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) refuse(path + " cannot be read");
    for (std::string line; std::getline(file, line) && line != "data";) {
        std::istringstream words(line);
        std::string kind, name;
        words >> kind >> name;
        if (kind == "op") {
            op_ = name;
        } else if (kind == "int") {
            words >> integers_[name];
        } else if (kind == "real") {
            words >> reals_[name];
        } else if (kind == "input" || kind == "output") {
            size_t bytes = 0;
            words >> bytes;
            tensors_.push_back({name, kind == "output", allocate(bytes), bytes});
        } else {
            refuse(path + ": a line starts with '" + kind + "'");
        }
    }
    for (const CaseTensor& tensor : tensors_)
        if (!tensor.is_output) file.read(reinterpret_cast<char*>(tensor.memory), tensor.bytes);
    if (!file) refuse(path + " ends too early");
}

Case::~Case() {
    for (const CaseTensor& tensor : tensors_) std::free(tensor.memory);
}

int64_t Case::integer(const std::string& name, int64_t otherwise) const {
    const auto found = integers_.find(name);
    return found == integers_.end() ? otherwise : found->second;
}

int64_t Case::integer(const std::string& name) const {
    const auto found = integers_.find(name);
    if (found == integers_.end()) refuse("the case of " + op_ + " lacks int " + name);
    return found->second;
}

float Case::real(const std::string& name) const {
    const auto found = reals_.find(name);
    if (found == reals_.end()) refuse("the case of " + op_ + " lacks real " + name);
    return found->second;
}

void* Case::address(const std::string& name) const {
    for (const CaseTensor& tensor : tensors_)
        if (tensor.name == name) return tensor.memory;
    return nullptr;
}

void Case::write_outputs(const std::string& path) const {
    std::ofstream file(path, std::ios::binary);
    for (const CaseTensor& tensor : tensors_)
        if (tensor.is_output)
            file.write(reinterpret_cast<const char*>(tensor.memory), tensor.bytes);
    if (!file) refuse(path + " cannot be written");
}

}  // namespace vila_mc
