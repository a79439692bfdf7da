// SPDX-License-Identifier: BSL-1.0
// threads.hpp: smx::threads, an executor for batch.hpp on threads of its own. Not part of smx.hpp: <thread> is paid for by
// who asks.
#pragma once

#include <atomic>    // atomic
#include <cstddef>   // size_t
#include <exception> // exception_ptr
#include <thread>    // thread
#include <utility>   // move
#include <vector>    // vector

#include <smx/detail/target.hpp>

namespace smx {

// threads{k}: at most k threads, the caller's among them; k = 0: as many as the hardware has. A batch is units of work of
// at least 32 KB, so that a small one stays on the caller's thread. There is no pool: threads start and end with the call, and
// take what is left in pieces, about eight each, so that one that starts late does less.
//
// Links    with -pthread where the C library has its threads apart (glibc before 2.34)
// Throws   what body throws: the first piece's that did, after all pieces are done and all threads have ended;
//          std::system_error when no thread can be had
struct threads {
    unsigned count = 0;

    template <class Body>
    void operator()(std::size_t units, Body&& body) const
    {
        if (units == 0)
            return;
        const std::size_t wanted = count != 0 ? count : std::thread::hardware_concurrency();
        const std::size_t takers = wanted == 0 ? 1 : wanted < units ? wanted : units;
        const std::size_t length = takers == 1 ? units : units / takers / 8;
        std::vector<failure> failures(takers);
        {
            pieces<Body> rest{body, units, length == 0 ? 1 : length};
            std::vector<joined> others;
            others.reserve(takers - 1);
            for (std::size_t i = 1; i < takers; ++i)
                others.emplace_back(std::thread([&rest, &first = failures[i]] { rest.take(first); }));
            rest.take(failures[0]);
        }
        const failure* first = nullptr;
        for (const failure& each : failures)
            if (each.error && (first == nullptr || each.at < first->at))
                first = &each;
        if (first != nullptr)
            std::rethrow_exception(first->error);
    }

private:
    struct joined { // std::jthread, which libc++ lacks
        std::thread thread;

        explicit joined(std::thread&& started) noexcept : thread(std::move(started)) {}
        joined(joined&&) noexcept = default;
        ~joined()
        {
            if (thread.joinable())
                thread.join();
        }
    };
    struct failure { // of a thread, its first
        std::size_t at = 0;
        std::exception_ptr error;
    };
    template <class Body>
    struct pieces {
        Body& body;
        std::size_t units, length;
        std::atomic<std::size_t> next{0}; // no thread has taken it yet

        void take(failure& first)
        {
            for (std::size_t i = next; i < units;) {
                const std::size_t end = units - i < length ? units : i + length;
                if (next.compare_exchange_weak(i, end, std::memory_order_relaxed)) {
                    guarded(body, first, i, end);
                    i = next;
                }
            }
        }
    };
    template <class Body>
    static void guarded(Body& body, failure& failed, std::size_t first, std::size_t last)
    {
#if SMX_HAS_EXCEPTIONS()
        try {
            body(first, last);
        } catch (...) {
            if (!failed.error)
                failed = {first, std::current_exception()};
        }
#else
        static_cast<void>(failed);
        body(first, last);
#endif
    }
};

} // namespace smx
