// SPDX-License-Identifier: BSL-1.0
// threads.hpp: smx::threads, an executor for batch.hpp on threads of its own. Not part of smx.hpp: <thread> is paid for by
// who asks.
#pragma once

#include <cstddef>   // size_t
#include <exception> // exception_ptr
#include <thread>    // jthread
#include <vector>    // vector

#include <smx/detail/target.hpp>

namespace smx {

// threads{k}: at most k threads, the caller's among them; k = 0: as many as the hardware has. A batch is units of work of
// at least 32 KB, so that a small one stays on the caller's thread. There is no pool: threads start and end with the call.
//
// Throws   what body throws: the first piece's that did, after all threads have ended; std::system_error when no thread can
//          be had
struct threads {
    unsigned count = 0;

    template <class Body>
    void operator()(std::size_t units, Body&& body) const
    {
        const std::size_t wanted = count != 0 ? count : std::thread::hardware_concurrency();
        const std::size_t pieces = wanted == 0 ? 1 : wanted < units ? wanted : units;
        std::vector<std::exception_ptr> errors(pieces);
        {
            std::vector<std::jthread> others;
            others.reserve(pieces);
            std::size_t first = 0;
            for (std::size_t i = 0; i < pieces; ++i) {
                const std::size_t last = first + units / pieces + (i < units % pieces);
                if (i + 1 < pieces)
                    others.emplace_back(
                        [&body, &error = errors[i], first, last] { guarded(body, error, first, last); });
                else
                    guarded(body, errors[i], first, last);
                first = last;
            }
        }
        for (const std::exception_ptr& error : errors)
            if (error)
                std::rethrow_exception(error);
    }

private:
    template <class Body>
    static void guarded(Body& body, std::exception_ptr& error, std::size_t first, std::size_t last)
    {
#if SMX_HAS_EXCEPTIONS()
        try {
            body(first, last);
        } catch (...) {
            error = std::current_exception();
        }
#else
        static_cast<void>(error);
        body(first, last);
#endif
    }
};

} // namespace smx
