// SPDX-License-Identifier: BSL-1.0
// catch.hpp: Catch2 v2 (Debian 12) and v3 under the same names. Tests use only what both have.
#pragma once
#if __has_include(<catch2/catch_test_macros.hpp>) // v3
#include <catch2/catch_approx.hpp>
#include <catch2/catch_message.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators_all.hpp>
#include <catch2/matchers/catch_matchers_all.hpp>
using Catch::Approx; // v2 has it in the global namespace already
#else                // v2
#include <catch2/catch.hpp>
#define STATIC_CHECK STATIC_REQUIRE
#define SKIP(why)                                                                                                      \
    do {                                                                                                               \
        WARN("skipped: " << why);                                                                                      \
        return;                                                                                                        \
    } while (false)
namespace Catch::Matchers {
using Impl::MatcherBase; // own matchers derive from this
}
#endif
