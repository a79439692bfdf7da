// SPDX-License-Identifier: BSL-1.0
// no_exceptions.cpp: compiled with -fno-exceptions -fno-rtti. Without an argument it makes good calls and exits with 0.
// With the name of a bad call it makes that one, which prints a message on stderr and aborts:
//   size         smx::softmax: probs has 3 elements, logits has 4
//   overlap      smx::log_softmax: log_probs ... logits ...
//   temperature  smx::softmax: temperature ...
//   mask         smx::softmax: mask has 2 elements, logits has 4
//   jacobian     smx::softmax_jacobian: jacobian has 8 elements, probs has 3 ...
//   product      smx::softmax_jvp: tangent has 2 elements, probs has 3
// 1: a wrong result; 2: an unknown name; 3: the bad call came back.
#include <smx/jacobian.hpp>
#include <smx/softmax.hpp>

#include <cstdio>  // fprintf
#include <cstring> // strcmp
#include <span>    // span

#if defined(__cpp_exceptions) || defined(__cpp_rtti)
#error "compile this with -fno-exceptions -fno-rtti"
#endif

namespace {

int good_calls()
{
    const double logits[4] = {1, 1, 1, 1}, tangent[4] = {1, 0, 0, 0};
    double probs[4] = {}, product[4] = {}, jacobian[16] = {};
    smx::softmax(logits, probs);
    smx::softmax_jvp(probs, tangent, product);
    smx::softmax_jacobian(probs, jacobian);
    const bool right = probs[3] == 0.25 && product[0] == 0.1875 && product[1] == -0.0625 && jacobian[0] == 0.1875 &&
                       jacobian[1] == -0.0625;
    return right ? 0 : 1;
}

int bad_call(const char* name)
{
    float memory[5] = {1, 2, 3, 4, 5}, out[16] = {};
    const std::span<float> row = memory;
    const std::span<float> room = out;
    const bool mask[4] = {true, true, true, true};
    if (std::strcmp(name, "size") == 0)
        smx::softmax(row.first(4), room.first(3));
    else if (std::strcmp(name, "overlap") == 0)
        smx::log_softmax(row.first(4), row.last(4));
    else if (std::strcmp(name, "temperature") == 0)
        smx::softmax(row, room.first(5), {.temperature = -1.0F});
    else if (std::strcmp(name, "mask") == 0)
        smx::softmax(row.first(4), room.first(4), {.mask = std::span(mask).first(2)});
    else if (std::strcmp(name, "jacobian") == 0)
        smx::softmax_jacobian(row.first(3), room.first(8));
    else if (std::strcmp(name, "product") == 0)
        smx::softmax_jvp(row.first(3), row.first(2), room.first(3));
    else
        return 2;
    return 3;
}

} // namespace

int main(int argc, char** argv)
{
    const int status = argc > 1 ? bad_call(argv[1]) : good_calls();
    if (status != 0)
        std::fprintf(stderr, "no_exceptions: status %d\n", status);
    return status;
}
