// SPDX-License-Identifier: BSL-1.0
// dispatch.hpp: which tables this machine can run, and the choice of one.
#pragma once

#include <atomic>      // atomic
#include <cstddef>     // size_t
#include <span>        // span
#include <type_traits> // is_same_v, remove_const_t

#include <smx/detail/isa_generic.hpp>
#include <smx/detail/row_table.hpp>
#include <smx/detail/target.hpp>

#if SMX_HAS_X86_LEAVES()
#include <smx/detail/isa_avx2.hpp>
#include <smx/detail/isa_avx512.hpp>
#endif

namespace smx::detail {
namespace { // every unit has its own tables: they point to its own copies

// Instruction sets, each of which includes those before it.
enum class level { generic, avx2, avx512 };

inline level detect_level()
{
#if SMX_HAS_X86_LEAVES()
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return level::generic;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl"))
        return level::avx2;
    return level::avx512;
#else
    return level::generic;
#endif
}

// Every table, in the order of levels. Templates all three: without optimisation GCC emits a constant that is none, and every
// kernel with it, in each unit that includes this.
template <class T>
constexpr row_table<T> all_tables[] = {generic::table<generic::lane<T>>};

#if SMX_HAS_X86_LEAVES()
template <class T>
    requires std::is_same_v<T, float>
constexpr row_table<T> all_tables<T>[] = {generic::table<generic::lane<T>>, avx2::table<avx2::f32>,
                                          avx512::table<avx512::f32>};
template <class T>
    requires std::is_same_v<T, double>
constexpr row_table<T> all_tables<T>[] = {generic::table<generic::lane<T>>, avx2::table<avx2::f64>,
                                          avx512::table<avx512::f64>};
#endif

// every table that this machine can run, the fastest last
template <class T>
inline std::span<const row_table<T>> tables()
{
    const auto last = static_cast<std::size_t>(detect_level());
    const std::size_t count = sizeof all_tables<T> / sizeof(row_table<T>);
    return {all_tables<T>, last < count ? last + 1 : count};
}

// One row function at every level that this machine can run, the fastest last.
template <class Function>
struct functions_by_level {
    struct named {
        const char* name;
        Function function;
    } functions[3];
    std::size_t count;

    const named* begin() const { return functions; }
    const named* end() const { return functions + count; }
    Function fastest() const { return functions[count - 1].function; }
};

template <class T, class Pick>
inline auto at_every_level(Pick pick)
{
    const auto generic = pick(generic::row_functions<generic::lane<T>>{});
    functions_by_level<std::remove_const_t<decltype(generic)>> all{{{"generic", generic}}, 1};
#if SMX_HAS_X86_LEAVES()
    if constexpr (std::is_same_v<T, float>)
        all = {{{"generic", generic},
                {"avx2", pick(avx2::row_functions<avx2::f32>{})},
                {"avx512", pick(avx512::row_functions<avx512::f32>{})}},
               static_cast<std::size_t>(detect_level()) + 1};
    else if constexpr (std::is_same_v<T, double>)
        all = {{{"generic", generic},
                {"avx2", pick(avx2::row_functions<avx2::f64>{})},
                {"avx512", pick(avx512::row_functions<avx512::f64>{})}},
               static_cast<std::size_t>(detect_level()) + 1};
#endif
    return all;
}

// The fastest of them, found by the first call: no call looks whether there was one before.
template <class T, class Pick, class Function>
struct fastest_function;

template <class T, class Pick, class Result, class... Arguments>
struct fastest_function<T, Pick, Result (*)(Arguments...)> {
    using function = Result (*)(Arguments...);

    static Result find_and_call(Arguments... arguments)
    {
        const function fastest = at_every_level<T>(Pick{}).fastest();
        found.store(fastest, std::memory_order_relaxed);
        return fastest(arguments...);
    }
    static inline constinit std::atomic<function> found{find_and_call};

    SMX_INLINE operator function() const { return found.load(std::memory_order_relaxed); }
    // loads last: a compiler takes it that another thread may have changed whatever an address is known of
    SMX_INLINE Result operator()(Arguments... arguments) const { return function(*this)(arguments...); }
};

// pick names the function, e.g. [](auto rows) { return rows.softmax; }. A program that uses one row function compiles that one
// for each level, not the tables.
template <class T, class Pick>
SMX_INLINE auto fastest(Pick pick)
{
    return fastest_function<T, Pick, decltype(pick(generic::row_functions<generic::lane<T>>{}))>{};
}

} // namespace
} // namespace smx::detail
