// One call of a kernel, as a file describes it: numbers, tensors that go in, tensors that come out.
//
//   op NAME
//   int NAME VALUE
//   real NAME VALUE
//   input NAME BYTES
//   output NAME BYTES
//   data
//   <the bytes of the inputs, in their order>
//
// Every tensor lies in a heap block of exactly its size, so that AddressSanitizer sees its ends;
// outputs are full of NaN until a kernel writes them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace vila_mc {

struct CaseTensor {
    std::string name;
    bool is_output;
    unsigned char* memory;
    size_t bytes;
};

class Case {
  public:
    explicit Case(const std::string& path);
    ~Case();
    Case(const Case&) = delete;
    Case& operator=(const Case&) = delete;

    const std::string& op() const { return op_; }
    int64_t integer(const std::string& name, int64_t otherwise) const;
    int64_t integer(const std::string& name) const;
    float real(const std::string& name) const;

    /// Address of a tensor; null if the file does not name it.
    template <class T>
    T* tensor(const std::string& name) const {
        return static_cast<T*>(address(name));
    }

    void write_outputs(const std::string& path) const;
    const std::vector<CaseTensor>& tensors() const { return tensors_; }

  private:
    void* address(const std::string& name) const;

    std::string op_;
    std::map<std::string, int64_t> integers_;
    std::map<std::string, float> reals_;
    std::vector<CaseTensor> tensors_;
};

}  // namespace vila_mc
