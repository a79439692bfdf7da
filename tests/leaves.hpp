// SPDX-License-Identifier: BSL-1.0
// leaves.hpp: one face for the row functions of every leaf and for the public interface.
//
// The one place in the tests that knows the table's signatures. Nothing here is inlined: a caller under -ffast-math
// knows nothing about what comes back, and floating-point flags are read after the work, not during it.
#pragma once
#include <smx/detail/dispatch.hpp>
#include <smx/detail/isa_generic.hpp>
#include <smx/detail/target.hpp>
#include <smx/jacobian.hpp>
#include <smx/softmax.hpp>

#include <cstddef>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

template <class T>
class leaf {
public:
    using in = std::span<const T>;
    using out = std::span<T>;
    using mask_type = std::span<const bool>;

    leaf() = default; // the public interface
    explicit leaf(const smx::detail::row_table<T>& table) : table_(&table) {}

    const char* name() const { return table_ == nullptr ? "public" : table_->name; }
    bool is_public() const { return table_ == nullptr; }

    // A leaf with one lane: absent entries do not change the order of any sum.
    bool is_generic() const { return table_ != nullptr && std::string_view(table_->name) == "generic"; }

    [[gnu::noinline]] void softmax(in logits, out probs, const T& temperature = one, mask_type mask = {}) const
    {
        if (table_ == nullptr)
            smx::softmax(logits, probs, {temperature, mask});
        else
            table_->softmax(logits.data(), probs.data(), logits.size(), smx::detail::scale_of<T>(temperature),
                            pointer(mask));
    }

    [[gnu::noinline]] void log_softmax(in logits, out log_probs, const T& temperature = one, mask_type mask = {}) const
    {
        if (table_ == nullptr)
            smx::log_softmax(logits, log_probs, {temperature, mask});
        else
            table_->log_softmax(logits.data(), log_probs.data(), logits.size(), smx::detail::scale_of<T>(temperature),
                                pointer(mask));
    }

    [[gnu::noinline]] void logsumexp(in logits, T& result) const // by reference: it may be NaN
    {
        if (table_ == nullptr)
            result = smx::logsumexp(logits);
        else
            table_->logsumexp(logits.data(), logits.size(), &result);
    }

    [[gnu::noinline]] void softmax_jacobian(in probs, out jacobian) const
    {
        if (table_ == nullptr)
            smx::softmax_jacobian(probs, jacobian);
        else
            table_->softmax_jacobian(probs.data(), probs.size(), jacobian.data());
    }

    [[gnu::noinline]] void log_softmax_jacobian(in probs, out jacobian) const
    {
        if (table_ == nullptr)
            smx::log_softmax_jacobian(probs, jacobian);
        else
            table_->log_softmax_jacobian(probs.data(), probs.size(), jacobian.data());
    }

    [[gnu::noinline]] void softmax_jvp(in probs, in tangent, out result) const
    {
        if (table_ == nullptr)
            smx::softmax_jvp(probs, tangent, result);
        else
            table_->softmax_jvp(probs.data(), tangent.data(), result.data(), probs.size());
    }

    [[gnu::noinline]] void softmax_vjp(in probs, in cotangent, out result) const
    {
        if (table_ == nullptr)
            smx::softmax_vjp(probs, cotangent, result);
        else
            table_->softmax_jvp(probs.data(), cotangent.data(), result.data(), probs.size()); // J is symmetric
    }

    [[gnu::noinline]] void log_softmax_jvp(in probs, in tangent, out result) const
    {
        if (table_ == nullptr)
            smx::log_softmax_jvp(probs, tangent, result);
        else
            table_->log_softmax_jvp(probs.data(), tangent.data(), result.data(), probs.size());
    }

    [[gnu::noinline]] void log_softmax_vjp(in probs, in cotangent, out result) const
    {
        if (table_ == nullptr)
            smx::log_softmax_vjp(probs, cotangent, result);
        else
            table_->log_softmax_vjp(probs.data(), cotangent.data(), result.data(), probs.size());
    }

    [[gnu::noinline]] void softmax_hvp(in probs, in cotangent, in tangent, out result) const
    {
        if (table_ == nullptr)
            smx::softmax_hvp(probs, cotangent, tangent, result);
        else
            table_->softmax_hvp(probs.data(), cotangent.data(), tangent.data(), result.data(), probs.size());
    }

private:
    static constexpr T one = T(1);
    static const bool* pointer(mask_type mask) { return mask.empty() ? nullptr : mask.data(); }

    const smx::detail::row_table<T>* table_ = nullptr;
};

// 2^(steps / 64 + r) by the generic leaf, compiled as it is in there.
SMX_PRECISE_BEGIN
[[gnu::noinline]] inline double generic_power(int steps, double r)
{
    return smx::detail::generic::power(steps, {r}, 0).value;
}
SMX_PRECISE_END

// Every leaf that this machine can run, then the public interface; long double has the latter only.
template <class T>
std::vector<leaf<T>> leaves()
{
    std::vector<leaf<T>> all;
    if constexpr (!std::is_same_v<T, long double>)
        for (const smx::detail::row_table<T>& table : smx::detail::tables<T>())
            all.push_back(leaf<T>(table));
    all.push_back(leaf<T>());
    return all;
}

// Those of them that promise each other's bits: all but the generic one. The public interface is one of them where any is.
template <class T>
std::vector<leaf<T>> leaves_of_same_bits()
{
    std::vector<leaf<T>> all;
    for (const leaf<T>& each : leaves<T>())
        if (!each.is_generic())
            all.push_back(each);
    return all;
}
