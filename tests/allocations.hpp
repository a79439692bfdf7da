// SPDX-License-Identifier: BSL-1.0
// allocations.hpp: counts what a test's program takes from the heap. For a program of one translation unit.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

std::size_t allocations = 0; // by operator new, below

} // namespace

[[gnu::noinline]] void* operator new(std::size_t size)
{
    ++allocations;
    if (void* memory = std::malloc(size == 0 ? 1 : size))
        return memory;
    throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept // or a sanitizer's would do it
{
    ++allocations;
    return std::malloc(size == 0 ? 1 : size);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
