// SPDX-License-Identifier: BSL-1.0
// message_of.hpp: what a bad call says.
#pragma once
#include <stdexcept>
#include <string>

// What a call threw: the text of std::invalid_argument, or how it failed to throw one.
template <class Call>
std::string message_of(Call call)
{
    try {
        call();
    } catch (const std::invalid_argument& error) {
        return error.what();
    } catch (...) {
        return "threw something else";
    }
    return "threw nothing";
}
