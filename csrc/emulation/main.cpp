// Runs one case file (case.h) on the emulated kernels: emulate CASE RESULTS
//
// Exit status 0: the outputs are in RESULTS; 2: the case makes no sense; 3: the kernel broke a rule
// of CUDA; anything else: a sanitizer stopped it. stderr says what happened.
#include <cstdio>
#include <string>

#include "case.h"
#include "simt.h"
#include "traffic.h"

namespace vila_mc {
int run_op(const Case& the_case);          // ops.cpp; -1 for an unknown name
int run_seeded_bug(const Case& the_case);  // seeded_bugs.cpp; the same
}  // namespace vila_mc

int main(int count, char** words) {
    if (count != 3) {
        std::fprintf(stderr, "usage: emulate CASE RESULTS\n");
        return 2;
    }
    const vila_mc::Case the_case(words[1]);
    simt::set_order(unsigned(the_case.integer("order", 0)));
    simt::played_device = {int(the_case.integer("multiprocessors", 2)),
                           int(the_case.integer("blocks_each", 1))};
    for (const vila_mc::CaseTensor& tensor : the_case.tensors())
        traffic::count(tensor.name, tensor.memory, tensor.bytes);
    int status = vila_mc::run_op(the_case);
    if (status < 0) status = vila_mc::run_seeded_bug(the_case);
    if (status < 0) {
        std::fprintf(stderr, "error: there is no op called '%s'\n", the_case.op().c_str());
        return 2;
    }
    the_case.write_outputs(words[2]);
    traffic::print();
    return status;
}
