// SPDX-License-Identifier: BSL-1.0
// exp_terms.inl: how a row computes e^((x - max) / t), written once for vectors of floats and of doubles.
//
// x c = k/16 + r with c = log2(e) / t, k an integer, |r| <= 1/32: exact but for 2^-30 (float), whatever max. The same for
// max: max c = K/16 + f, and
//   e^((x - max) / t) = 2^((k - K) div 16) 2^(j/16) 2^(r - f),   j = (k - K) mod 16.
// A row of more than one vector takes f into its own table, P_j = 2^(j/16 - f): the subtraction then costs nothing an entry.
// P_j is rounded, and delta_j is its relative rounding error: e = P_j + P_j (q(r) + delta_j), q(r) = 2^r - 1. The largest
// term is 1 exactly. A row in registers, a column and blocks of a row take f nowhere: their terms are
// e^((x - max) / t) 2^f, see loose_shift_of.
//
// Not a header: each vector leaf includes it after its primitives P: memory and masks, set1, fma (a b + c), fms (a b - c),
// fnma (c - a b), sixteenths (a b + m, rounded to nearest: with m near magic it has k in its last bits), and powers, a table
// of P_j and delta_j that is looked up by k.

template <class P, class T>
struct rows;
template <class P, class T>
struct far_rows;
template <class Doubles>
struct widened_floats;

// q(r) = 2^r - 1 where |r| <= 1/32, by tests/coefficients.sollya: coefficients of r^n ... r
template <class T>
struct series;

template <>
struct series<float> { // absolute error 2^-28.7
    static constexpr float coefficients[] = {0x1.c6ad9ap-5f, 0x1.ebff92p-3f, 0x1.62e43p-1f};
};

template <>
struct series<double> { // absolute error 2^-56
    static constexpr double coefficients[] = {0x1.430a7604c93ep-13, 0x1.5d897cfeadb47p-10, 0x1.3b2ab6fad1e0fp-7,
                                              0x1.c6b08d6f2d79cp-5, 0x1.ebfbdff82c597p-3,  0x1.62e42fefa39f3p-1};
};

// Several vectors in turn, instruction by instruction: what is ready comes early, and none waits for the one before.
template <class P, std::size_t... k>
struct in_turn {
    using vec = typename P::vec;
    static constexpr std::size_t count = sizeof...(k);

    // q(r) + last
    template <class T, std::size_t i = 0>
    static SMX_INLINE void add_series(const vec (&r)[count], vec (&q)[count], const vec (&last)[count])
    {
        constexpr std::size_t degree = sizeof(series<T>::coefficients) / sizeof(T);
        const vec coefficient = P::set1(series<T>::coefficients[i]);
        if constexpr (i == 0)
            ((q[k] = coefficient), ...);
        else
            ((q[k] = P::fma(r[k], q[k], coefficient)), ...);
        if constexpr (i + 1 < degree)
            add_series<T, i + 1>(r, q, last);
        else
            ((q[k] = P::fma(r[k], q[k], last[k])), ...);
    }
    // x becomes 2^(n/16 + r), n in its last bits
    template <class Powers>
    static SMX_INLINE void power(vec (&x)[count], const vec (&n)[count], const vec (&r)[count], const Powers& powers)
    {
        const typename Powers::entry t[] = {powers.at(n[k])...};
        const vec delta[] = {t[k].delta...};
        vec q[count];
        add_series<typename P::scalar>(r, q, delta);
        ((x[k] = P::fma(t[k].power, q[k], t[k].power)), ...);
    }
    // x becomes e^((x - max) / t), by a table of the row
    template <class Shift>
    static SMX_INLINE void exp_by_table(vec (&x)[count], const Shift& s)
    {
        if (s.clamps)
            ((x[k] = P::at_least(s.lowest, x[k])), ...);
        const vec n[] = {P::sixteenths(x[k], s.scale_hi, s.magic)...};
        const vec rounded[] = {P::fms(x[k], s.scale_hi, n[k] - s.magic)...};
        const vec r[] = {P::fma(x[k], s.scale_lo, rounded[k])...};
        power(x, n, r, s.powers);
    }
    // the same by the table of all rows
    template <class Shift, class Powers>
    static SMX_INLINE void exp_of_difference(vec (&x)[count], const Shift& s, const Powers& powers)
    {
        const vec n[] = {P::rounded_sum(P::fma(x[k], s.scale_hi, s.minus_scaled_max), P::magic())...};
        const vec rounded[] = {(P::fms(x[k], s.scale_hi, n[k] - s.magic) - s.fraction)...};
        const vec r[] = {P::fma(x[k], s.scale_lo, rounded[k])...};
        power(x, n, r, powers);
    }
};

// The sums of eight rows of eight doubles, each in the tree of lane_sum: lane r is the sum of row r.
template <class W>
struct eight_sums {
    using vec = typename W::vec;
    struct pairs {
        vec hi, lo;
    };

    static SMX_INLINE vec halves(const vec& a, const vec& b) { return W::low_halves(a, b) + W::high_halves(a, b); }
    static SMX_INLINE vec quarters(const vec& a, const vec& b)
    {
        return W::low_quarters(a, b) + W::high_quarters(a, b);
    }
    static SMX_INLINE vec of(const vec (&x)[8])
    {
        const vec even = quarters(halves(x[0], x[2]), halves(x[4], x[6]));
        const vec odd = quarters(halves(x[1], x[3]), halves(x[5], x[7]));
        return W::even_lanes(even, odd) + W::odd_lanes(even, odd);
    }

    // a sum as hi + lo, lane by lane
    static SMX_INLINE pairs two_sum_of(const vec& a, const vec& b, const vec& lo)
    {
        const vec s = a + b, b_part = s - a;
        return {s, ((a - (s - b_part)) + (b - b_part)) + lo};
    }
    static SMX_INLINE pairs fast_two_sum_of(const vec& hi, const vec& lo)
    {
        const vec s = hi + lo;
        return {s, lo - (s - hi)};
    }
};

// What rows of floats and of doubles have in common.
template <class P, class T>
struct term_rows : P, wide_arithmetic<T> {
    using scalar = T;
    using typename P::some;
    using typename P::vec;
    using numbers = wide_arithmetic<T>;
    static constexpr bool is_rare = false;

    static constexpr std::size_t cached_length = (std::size_t{1} << 24) / sizeof(T); // 16 MB in, 16 MB out
    static constexpr std::size_t blocked_length = 8192;                  // longer rows are read once, in blocks
    static constexpr std::size_t near_length = std::size_t{1} << 18;     // longer rows come from far away in each pass
    static constexpr std::size_t near_end = (1u << 18) / sizeof(T);      // what of them is still near after a pass
    static constexpr std::size_t streamed_length = std::size_t{1} << 22; // longer rows are stored past the cache

    // stores that pass the cache by, in order with all others from end_of_stream() on; whole steps start at a cache line
    static SMX_INLINE void end_of_stream() { _mm_sfence(); }
    static SMX_INLINE void fetch(const T* x) { __builtin_prefetch(x); } // to the cache
    // Rows that are not held in registers, of up to some pages, in a batch of so many entries that no near cache holds: each
    // would wait for memory anew.
    static SMX_INLINE bool fetches_next(std::size_t n, std::size_t size)
    {
        return n > 512 / sizeof(T) && n <= 12288 / sizeof(T) && size > 1048576 / sizeof(T);
    }
    static SMX_INLINE bool fetches_short(std::size_t n, std::size_t size) // the same of rows in lanes
    {
        return n > 32 / sizeof(T) && size > 1048576 / sizeof(T);
    }
    static SMX_INLINE std::size_t entries_to_line(const T* x)
    {
        return (64 - reinterpret_cast<std::uintptr_t>(x) % 64) % 64 / sizeof(T);
    }

    // each entry of a row of one step once: see load_short
    static SMX_INLINE std::size_t half_of_short(std::size_t n)
    {
        return n >= P::lanes / 2 ? P::lanes / 2 : n >= P::lanes / 4 ? P::lanes / 4 : P::lanes == 16 && n >= 2 ? 2 : 1;
    }
    static SMX_INLINE some where_short(const bool* mask, std::size_t n)
    {
        const std::size_t half = half_of_short(n);
        std::uint64_t low = 0, high = 0;
        if (half == 8) {
            __builtin_memcpy(&low, mask, 8);
            __builtin_memcpy(&high, mask + n - 8, 8);
        } else if (half == 4) {
            __builtin_memcpy(&low, mask, 4);
            __builtin_memcpy(reinterpret_cast<unsigned char*>(&low) + 4, mask + n - 4, 4);
        } else if (half == 2) {
            __builtin_memcpy(&low, mask, 2);
            __builtin_memcpy(reinterpret_cast<unsigned char*>(&low) + 2, mask + n - 2, 2);
        } else
            low = *mask;
        const __m128i bytes = _mm_set_epi64x(static_cast<long long>(high), static_cast<long long>(low));
        return P::lanes_of(static_cast<std::uint16_t>(_mm_movemask_epi8(_mm_cmpgt_epi8(bytes, _mm_setzero_si128()))));
    }
    static SMX_INLINE some inside_short(std::size_t n) { return P::lanes_of(lanes_of_short_rows[n]); }

    // x c is exact, but for 2^-30 (float) or 2^-60 (double), where |x| is less than 2^16 t or 2^40 t. NaN and infinity are far.
    static SMX_INLINE bool is_far(const vec& max, const exp_scale<T>& scale)
    {
        const number<T> x{P::lane0(max)}, reach{scale.reach};
        return !(x < reach && number<T>{-scale.reach} < x) || !P::rounds_to_nearest();
    }

    static SMX_INLINE bool any_far(const vec& max, const exp_scale<T>& scale)
    {
        return P::count(P::less_than(P::abs(max), P::set1(scale.reach))) != P::lanes || !P::rounds_to_nearest();
    }

    // max c = K/16 + f: x c + (magic - K/16) has k - K in its last bits
    static SMX_INLINE vec fraction_of(const vec& max, const vec& rounded, const vec& scale_hi, const vec& scale_lo)
    {
        return P::fma(max, scale_lo, P::fms(max, scale_hi, rounded));
    }

    // How the table of the powers 2^(j/16) becomes that of a row: times 1 + w. power is rounded, delta its relative rounding
    // error, for which 1 / power to 4 bits is enough.
    struct turned {
        vec w;
        SMX_INLINE void operator()(vec& power, vec& delta) const
        {
            const vec t = power;
            power = P::fma(t, w, t);
            const vec inverse = P::fnma(power, P::set1(T(0.5)), P::set1(T(1.457)));
            delta = P::fma(P::fms(t, w, power - t), inverse, delta);
        }
    };

    static SMX_INLINE vec q_plus(const vec& r, const vec& last)
    {
        const vec one_r[] = {r}, one_last[] = {last};
        vec q[1];
        in_turn<P, 0>::template add_series<T>(one_r, q, one_last);
        return q[0];
    }

    struct differences { // log_prob: (x unit - max unit) inverse
        vec max_in_units, unit, inverse;
    };
    static SMX_INLINE differences differences_from(const vec& max, const exp_scale<T>& scale)
    {
        return {max * P::set1(scale.unit), P::set1(scale.unit), P::set1(scale.inverse_hi)};
    }

    // in units; on its own, since with -ffast-math Clang would turn its sign and with that the sign of 0
    static SMX_INLINE vec difference(const vec& x, const differences& s)
    {
        return P::in_register(P::fms(x, s.unit, s.max_in_units));
    }

    // One step of a row that has no more: every lane may have a max of its own.
    struct step_shift : differences {
        vec lowest; // below it e counts as what it is there: 2^33 such terms are less than the smallest subnormal
        vec scale_hi, scale_lo, magic, fraction, minus_scaled_max;
    };
    static SMX_INLINE step_shift step_shift_of(const vec& max, const exp_scale<T>& scale)
    {
        const vec hi = P::set1(scale.near_hi), rounded = P::sixteenths(max, hi, P::magic()) - P::magic();
        return {
            differences_from(max, scale),
            max - P::set1(scale.depth), // no named vector: GCC 12 copies them in halves, and then waits for the whole
            P::set1(scale.near_hi),           P::set1(scale.near_lo), P::magic() - rounded,
            fraction_of(max, rounded, scale), P::zero() - max * hi};
    }
    static SMX_INLINE vec exp_term(const vec& x, const step_shift& s)
    {
        vec e[] = {P::at_least(s.lowest, x)};
        in_turn<P, 0>::exp_of_difference(e, s, typename P::powers{});
        return e[0];
    }
    static SMX_INLINE void exp_terms(vec (&x)[2], const step_shift& s)
    {
        x[0] = P::at_least(s.lowest, x[0]);
        x[1] = P::at_least(s.lowest, x[1]);
        in_turn<P, 0, 1>::exp_of_difference(x, s, typename P::powers{});
    }

    // In every lane the largest of the entries seen, and the lowest if that is negative. A NaN may be lost.
    struct extent {
        vec max, low;

        explicit SMX_INLINE extent(const vec& first) : max(first), low(first) {}
        SMX_INLINE void add(const vec& x)
        {
            max = P::max(max, x);
            low = P::lower(low, x);
        }
        SMX_INLINE void add(const extent& other)
        {
            max = P::max(max, other.max);
            low = P::lower(low, other.low);
        }
        // All |x| are so small that e^(x/t) needs no origin: |x c| <= 30, or 300.
        SMX_INLINE bool is_small(const exp_scale<T>& scale) const
        {
            const vec limit = P::set1(scale.depth * T(numbers::small_part));
            return P::count(P::less_than(limit, max)) == 0 && P::none_below(low, P::zero() - limit) &&
                   P::rounds_to_nearest();
        }
    };

    static SMX_INLINE bool is_small_magnitude(const vec& x, const exp_scale<T>& scale) // the same of the largest |x|
    {
        return P::count(P::less_than(P::set1(scale.depth * T(numbers::small_part)), x)) == 0 && P::rounds_to_nearest();
    }

    // N, max c rounded, and what that leaves
    static SMX_INLINE vec whole_of(const vec& max, const exp_scale<T>& scale)
    {
        const vec magic = P::set1(16 * numbers::magic);
        return P::sixteenths(max, P::set1(scale.near_hi), magic) - magic;
    }
    static SMX_INLINE vec fraction_of(const vec& max, const vec& whole, const exp_scale<T>& scale)
    {
        return fraction_of(max, whole, P::set1(scale.near_hi), P::set1(scale.near_lo));
    }

    // A row with its table.
    struct shift : step_shift {
        typename P::powers powers;
        bool clamps = true; // some entry may be below lowest

        SMX_INLINE void clamp_if_needed(const extent& x)
        {
            clamps = !(P::lane0(this->lowest) < 0 && P::none_below(x.low, this->lowest));
        }
    };
    static SMX_INLINE typename P::powers powers_of(const vec& fraction) // times 2^-f
    {
        const vec r = P::zero() - fraction;
        return typename P::powers(turned{q_plus(r, P::zero())});
    }
    static SMX_INLINE shift shift_of(const vec& max, const exp_scale<T>& scale)
    {
        const step_shift s = step_shift_of(max, scale);
        return {s, powers_of(s.fraction)};
    }
    static SMX_INLINE shift shift_of(const extent& x, const exp_scale<T>& scale)
    {
        shift s = shift_of(x.max, scale);
        s.clamp_if_needed(x);
        return s;
    }
    // By the table of all rows: 2^bias e^(x/t) 2^-N; where all x are small, e^(x/t), which does not wait for max. No digit of a
    // quotient is lost either way, so that its bits are the same. Every lane may have a max of its own.
    static SMX_INLINE shift loose_shift_of(bool all_small, const vec& max, const exp_scale<T>& scale)
    {
        return {{{P::zero(), P::zero(), P::zero()},
                 all_small ? P::zero() : max - P::set1(scale.depth),
                 P::set1(scale.near_hi),
                 P::set1(scale.near_lo),
                 all_small ? P::set1(numbers::magic - numbers::bias) : P::magic() - whole_of(max, scale),
                 P::zero(),
                 P::zero()},
                typename P::powers{},
                !all_small};
    }
    static SMX_INLINE vec power(const vec& x, const vec& k, const shift& s)
    {
        vec e[1];
        const vec n[] = {k}, r[] = {P::fma(x, s.scale_lo, P::fms(x, s.scale_hi, k - s.magic))};
        in_turn<P, 0>::power(e, n, r, s.powers);
        return e[0];
    }
    static SMX_INLINE vec exp_term(const vec& x, const shift& s)
    {
        vec e[] = {x};
        in_turn<P, 0>::exp_by_table(e, s);
        return e[0];
    }
    static SMX_INLINE void exp_terms(vec (&x)[2], const shift& s) { in_turn<P, 0, 1>::exp_by_table(x, s); }

    // A sum of terms as hi + lo. hi starts at what no term exceeds, so that s - hi is what x added, and lo takes the rest
    // without error (Dekker 1971).
    struct dekker_sum {
        vec hi, lo, start;

        SMX_INLINE dekker_sum() : dekker_sum(P::set1(8 * numbers::two_to_bias)) {}
        explicit SMX_INLINE dekker_sum(const vec& start_) : hi(start_), lo(P::zero()), start(start_) {}
        SMX_INLINE void add(const vec& x)
        {
            const vec s = hi + x;
            lo = lo + (x - (s - hi));
            hi = s;
        }
        SMX_INLINE vec upper() const { return hi - start; }
        SMX_INLINE auto total() const { return P::lane_sum(upper(), lo); }
    };
    // Of the largest term of a row: 2^3 times as much; in double 2^7, the upper parts of terms, s - start in dekker_sum, are then
    // multiples of 2^-46 of it, and 64 of them are added without error.
    static SMX_INLINE vec start_of_terms(const vec& max, const exp_scale<T>& scale, bool all_small)
    {
        constexpr int more = sizeof(T) == 4 ? 3 : 7;
        const vec whole = P::sixteenths(max, P::set1(scale.near_hi), P::set1(16 * numbers::magic));
        return all_small ? P::whole_power(whole, more) : P::set1((1 << more) * numbers::two_to_bias);
    }

    // A sum that each term meets by itself: two that are added first would cost a rounding.
    template <class Sum>
    struct one_by_one : Sum {
        SMX_INLINE one_by_one() : Sum() {}
        explicit SMX_INLINE one_by_one(const vec& start_) : Sum(start_) {}
        SMX_INLINE void add(const vec& x) { Sum::add(x); }
        SMX_INLINE void add(const vec& a, const vec& b)
        {
            Sum::add(a);
            Sum::add(b);
        }
    };
    using single_sum = one_by_one<typename P::sum>;
    // The same of a row of small logits, of which the largest term is not 1 and has an error of its own.
    using small_sum = one_by_one<dekker_sum>;
    // A sum whose terms may be added in fours before they meet it: one more rounding.
    struct rough_sum : P::sum {
        SMX_INLINE rough_sum() : P::sum() {}
        SMX_INLINE void add(const vec& x) { P::sum::add(x); }
        SMX_INLINE void add(const vec& a, const vec& b, const vec& c, const vec& d) { P::sum::add((a + b) + (c + d)); }
    };

    static SMX_INLINE bool is_large_tail(real sum) { return power_of_two(numbers::bias) < sum; }
    static SMX_INLINE bool is_large_tail(pair sum) { return is_large_tail(sum.hi); }
    template <class Some>
    static SMX_INLINE vec or_minus_infinity(const Some& which, const vec& a)
    {
        return P::select(which, a, P::minus_infinity());
    }
    static SMX_INLINE vec without_largest(const some& largest, const vec& e)
    {
        return P::select(largest, P::zero(), e);
    }

    static SMX_INLINE bool can_group() { return current_mode_is_nearest(); } // else their roundings all go one way

    // Products are tiny where they may be subnormal.
    static SMX_INLINE vec up() { return P::set1(numbers::two_to_bias); }
    static SMX_INLINE vec down() { return P::set1(T(1) / numbers::two_to_bias); }
    static SMX_INLINE vec scaled_product(const vec& a, const vec& b)
    {
        const some smaller = P::less_than(P::abs(a), P::abs(b));
        return P::select(smaller, a, b) * up() * P::select(smaller, b, a);
    }
    static SMX_INLINE some tiny(const vec& a) { return P::less_than(P::abs(a), P::set1(numbers::tiny)); }
    static SMX_INLINE bool is_tiny(const vec& a) { return P::count(tiny(a)) != 0; }
    static SMX_INLINE vec alone(const vec& a) { return P::in_register(a); }
    static SMX_INLINE vec where_tiny(const vec& a, const vec& if_tiny, const vec& otherwise)
    {
        return P::select(tiny(a), if_tiny, otherwise);
    }
};

template <class P>
struct rows<P, float> : term_rows<P, float> {
    using base = term_rows<P, float>;
    using typename base::differences;
    using typename base::shift;
    using typename P::vec;
    using wide = real;
    using far_away = far_rows<P, float>;
    using precise = widened_floats<rows<typename P::wide_lanes, double>>;

    // log1p(T) of rows of small logits: longer ones gain nothing by terms without an origin, or by a sum in double
    static constexpr std::size_t most_without_origin = 2048, most_in_double = 256;

    // half of the lanes from a, half from b
    static SMX_INLINE vec load_halves(const float* a, const float* b)
    {
        return P::join(_mm256_loadu_ps(a), _mm256_loadu_ps(b));
    }
    static SMX_INLINE void store_halves(float* a, float* b, const vec& x)
    {
        _mm256_storeu_ps(a, P::lower_half(x));
        _mm256_storeu_ps(b, P::upper_half(x));
    }
    // A row of 1 to 16 entries, of which no byte behind the last is touched: the halves of 16, 8, 4 or 2 lanes may overlap, and
    // the lanes behind repeat them. Of at most 8 entries: part is half of 8, 4 or 2.
    template <std::size_t part>
    static SMX_INLINE __m256 load_parts(const float* x, std::size_t n)
    {
        __m128 low = _mm_set1_ps(*x), high = low;
        if constexpr (part == 4) {
            low = _mm_loadu_ps(x);
            high = _mm_loadu_ps(x + n - 4);
        } else if constexpr (part == 2)
            low = high = _mm_loadh_pi(_mm_loadl_pi(low, reinterpret_cast<const __m64*>(x)),
                                      reinterpret_cast<const __m64*>(x + n - 2));
        return _mm256_set_m128(high, low);
    }
    template <std::size_t part>
    static SMX_INLINE void store_parts(float* x, std::size_t n, __m256 eight)
    {
        const __m128 four = _mm256_castps256_ps128(eight);
        if constexpr (part == 4) {
            _mm_storeu_ps(x, four);
            _mm_storeu_ps(x + n - 4, _mm256_extractf128_ps(eight, 1));
        } else if constexpr (part == 2) {
            _mm_storel_pi(reinterpret_cast<__m64*>(x), four);
            _mm_storeh_pi(reinterpret_cast<__m64*>(x + n - 2), four);
        } else
            *x = four[0];
    }
    static SMX_INLINE vec load_short(const float* x, std::size_t n)
    {
        if (n >= 8)
            return load_halves(x, x + n - 8);
        const __m256 eight = n >= 4 ? load_parts<4>(x, n) : n >= 2 ? load_parts<2>(x, n) : load_parts<1>(x, n);
        return P::join(eight, eight);
    }
    static SMX_INLINE void store_short(float* x, std::size_t n, const vec& v)
    {
        if (n >= 8)
            store_halves(x, x + n - 8, v);
        else if (n >= 4)
            store_parts<4>(x, n, P::lower_half(v));
        else if (n >= 2)
            store_parts<2>(x, n, P::lower_half(v));
        else
            store_parts<1>(x, n, P::lower_half(v));
    }

    static SMX_INLINE real lane(const vec& x) { return {static_cast<double>(P::lane0(x))}; }
    static SMX_INLINE vec narrow(real x) { return P::set1(static_cast<float>(x.value)); }
    static SMX_INLINE real widen(const vec& x) { return lane(x); }
    static SMX_INLINE vec lift(real x) { return narrow(power_that_lifts(x, 126)); }

    // The sum of the terms of a row. Of two vectors the sum is added; before lo loses digits, all is folded.
    struct term_sum {
        typename base::dekker_sum terms;
        real folded;
        std::size_t count;

        SMX_INLINE term_sum() : terms(), folded{0}, count(0) {}
        SMX_INLINE void add(const vec& x)
        {
            terms.add(x);
            if (++count % 128 == 0) {
                folded = total();
                terms = typename base::dekker_sum();
            }
        }
        SMX_INLINE void add(const vec& a, const vec& b) { add(a + b); }
        SMX_INLINE real total() const { return folded + terms.total(); }
    };
    // the sum of the terms of one step, or of two
    static SMX_INLINE real step_total(const vec& e, std::size_t n) // n entries, as load_short has them
    {
        return n <= 8 ? P::lane_sum(P::low(e)) : P::lane_sum(e);
    }
    static SMX_INLINE real step_total(const vec& a, const vec& b) { return P::lane_sum(a, b); }

    // softmax of rows of small logits: longer ones gain nothing by a sum that does not wait for max, or by terms without an origin
    static constexpr std::size_t most_without_max = 16 * P::lanes, most_small = 48 * P::lanes;
    struct held_sum {
        typename P::half s;

        explicit SMX_INLINE held_sum(const vec&) : s(P::set_half(0)) {}
        SMX_INLINE void add(const vec& x) { s = s + fold(x); }
        SMX_INLINE real total() const { return P::lane_sum(s); }
    };
    // the same of one step, or of two
    static SMX_INLINE real held_total(const vec&, const vec& a, std::size_t n) { return step_total(a, n); }
    static SMX_INLINE real held_total(const vec&, const vec& a, const vec& b) { return step_total(a, b); }

    // Products of short rows, in double: n <= 8 entries as load_short has them.
    static constexpr bool is_doubled = true;
    static constexpr std::size_t most_doubled = 4 * P::wide_lanes::lanes;
    static constexpr std::size_t most_held_of_products = 4 * P::lanes;
    static SMX_INLINE typename P::half load_doubled(const float* x, std::size_t n)
    {
        if (n == 8)
            return P::wide_lanes::load_floats(x, P::wide_lanes::every());
        return P::low(load_short(x, n));
    }
    static SMX_INLINE bool vanishes(const float* x) { return __builtin_bit_cast(std::uint32_t, *x) << 1 == 0; }
    static SMX_INLINE auto inside_doubled(std::size_t n) { return P::wide_lanes::lanes_of(lanes_of_short_rows[n]); }
    static SMX_INLINE void store_doubled(float* x, std::size_t n, const typename P::half& v)
    {
        if (n == 8)
            _mm256_storeu_ps(x, P::narrowed(v));
        else
            store_short(x, n, P::narrowed(v, v));
    }

    static SMX_INLINE typename P::half fold(const vec& x) { return P::low(x) + P::high(x); }
    struct product_sums {
        real mass, dot;
    };
    static SMX_INLINE product_sums product_sums_of(const typename P::half& mass, const typename P::half& dot)
    {
        const typename P::wide_lanes::two_sums sums = P::wide_lanes::lane_sums(mass, dot);
        return {{sums.both[0]}, {sums.both[1]}};
    }
    static SMX_INLINE product_sums totals_of(const typename P::sum& mass, const typename P::sum& dot)
    {
        return product_sums_of(mass.lower + mass.upper, dot.lower + dot.upper);
    }
    static SMX_INLINE product_sums product_sums_of(const vec& mass, const vec& dot)
    {
        return product_sums_of(fold(mass), fold(dot));
    }

    // The same where every lane is a row, of not so many entries that a row by itself is faster: its sums, in double.
    static constexpr std::size_t most_in_lanes = 28;
    struct lane_wide {
        typename P::half lower, upper;
    };
    static SMX_INLINE lane_wide lane_widen(const vec& x) { return {P::low(x), P::high(x)}; }
    static SMX_INLINE lane_wide lane_term(const vec&, const vec& x) { return lane_widen(x); }
    static SMX_INLINE lane_wide lane_plus(const lane_wide& a, const lane_wide& b)
    {
        return {a.lower + b.lower, a.upper + b.upper};
    }
    static SMX_INLINE const lane_wide& lane_total(const lane_wide& a) { return a; }
    static SMX_INLINE void store_lanes(real (&x)[P::lanes], const lane_wide& a)
    {
        double lane[P::lanes];
        P::wide_lanes::store(lane, P::wide_lanes::every(), a.lower);
        P::wide_lanes::store(lane + P::lanes / 2, P::wide_lanes::every(), a.upper);
        for (std::size_t r = 0; r < P::lanes; ++r)
            x[r] = {lane[r]};
    }
    static SMX_INLINE lane_wide lane_zero() { return {P::set_half(0), P::set_half(0)}; }
    static SMX_INLINE lane_wide lane_add(const lane_wide& sum, const vec& x) { return lane_plus(sum, lane_widen(x)); }
    static constexpr std::size_t tree_width = P::lanes / 2; // of a sum, whose lanes are folded
    static SMX_INLINE real log1p(real t) { return detail::log1p<fused>(t); }
    // The inverse of a largest term of loose_shift_of; relative error 2^-28.
    static SMX_INLINE real inverse_of_largest(bool all_small, const vec& max, const exp_scale<float>& scale)
    {
        constexpr real magic{0x1.8p+48}, bias{base::numbers::bias};
        const real whole = all_small ? real{0} : lane(base::whole_of(max, scale)) - bias;
        const real exponent = fused::multiply_add(real{0} - lane(max), real{scale.near_factor}, whole);
        const real k{P::rounded_sum(exponent.value, magic.value)}; // its last bit is 1/16
        const real r = exponent - (k - magic);
        const auto sixteenths = __builtin_bit_cast(std::uint64_t, k);
        const double t = sixteenth_powers_of_doubles.power[sixteenths % 16];
        const auto power = __builtin_bit_cast(std::uint64_t, t) + (sixteenths / 16 << 52);
        constexpr auto& p = series<float>::coefficients;
        const real q = fused::multiply_add(fused::multiply_add(base::as_double(p[0]), r, base::as_double(p[1])), r,
                                           base::as_double(p[2]));
        const real sixteenth{__builtin_bit_cast(double, power)};
        return fused::multiply_add(sixteenth * r, q, sixteenth);
    }
    static SMX_INLINE vec log_prob(const vec& x, const differences& s, real log1p_tail)
    {
        return log_prob(x, s, narrow(log1p_tail));
    }
    static SMX_INLINE vec log_prob(const vec& x, const differences& s, const vec& log1p_tail) // a tail in each lane
    {
        return P::fms(base::difference(x, s), s.inverse, log1p_tail);
    }
    static SMX_INLINE vec plus(const vec& a, real b) { return narrow(lane(a) + b); }
    static SMX_INLINE real less_fraction(real log, const vec& fraction) // log - fraction log 2
    {
        return log - lane(fraction) * real{0x1.62e42fefa39efp-1};
    }

    struct factor {
        vec hi, lo;
    };
    static SMX_INLINE factor split(real x)
    {
        const float hi = static_cast<float>(x.value);
        return {P::set1(hi), P::set1(static_cast<float>(x.value - static_cast<double>(hi)))};
    }
    static SMX_INLINE factor inverse(real sum) { return split(real{1} / sum); }
    static SMX_INLINE factor lane_reciprocal(const lane_wide& sum)
    {
        const lane_wide x = {P::set_half(1) / sum.lower, P::set_half(1) / sum.upper};
        const vec hi = P::narrowed(x.lower, x.upper);
        return {hi, P::narrowed(x.lower - P::low(hi), x.upper - P::high(hi))};
    }
    static SMX_INLINE vec times(const vec& e, const factor& f) { return P::fma(e, f.hi, e * f.lo); }

    static SMX_INLINE bool outweighs(const vec& p, real s) { return wide_arithmetic<float>::outweighs(lane(p), s); }
    static SMX_INLINE vec product(const vec& a, real b) { return narrow(lane(a) * b); }
    static SMX_INLINE vec minus(real a, const vec& b) { return narrow(a) - b; }
    static SMX_INLINE vec less(const vec& a, real b)
    {
        const factor f = split(b);
        return (a - f.hi) - f.lo;
    }
    static SMX_INLINE vec scaled_minus(real s, const vec& x, real b) // s x - b
    {
        const factor f = split(s), g = split(b);
        return P::fms(f.hi, x, g.hi) + P::fms(f.lo, x, g.lo);
    }

    // products: so many steps may be added to each other before they meet a sum
    static constexpr std::size_t rough_group = 8;
    static SMX_INLINE vec rough_minus(real s, const vec& x, real b) // s x - b, both to a float
    {
        return P::fms(narrow(s), x, narrow(b));
    }

    static SMX_INLINE wide others(wide tail, const vec& e, bool is_largest)
    {
        return wide_arithmetic<float>::others(tail, lane(e), is_largest);
    }
    // -log p of one entry, at temperature 1: in lanes that nobody uses the difference might overflow
    static SMX_INLINE vec surprise(const vec& x, const vec& max, const differences&, wide log1p_tail)
    {
        const number<float> loss = (number<float>{P::lane0(max)} - number<float>{P::lane0(x)}) +
                                   number<float>{static_cast<float>(log1p_tail.value)};
        return P::set1(loss.value);
    }
    // max - x of an exponential term, no more than e counts; (max - x) reduced, finite for an absent x
    static SMX_INLINE vec distance(const vec& x, const shift& s) { return s.max_in_units - P::at_least(s.lowest, x); }
    static SMX_INLINE vec lifted(const vec& a) { return a * P::set1(0x1p+40f); }
    static SMX_INLINE vec lowered(const vec& a) { return a * P::set1(0x1p-40f); }
    static SMX_INLINE vec reduced_distance(const vec& x, const vec& max)
    {
        return P::fma(P::at_least(P::set1(-0x1.fffffep+127f), x), P::set1(-0.5f), max * P::set1(0.5f));
    }
    using weight = real; // e weight - t, in double
    static SMX_INLINE weight weight_of(wide mass, wide sum) { return mass / sum; }
    static SMX_INLINE vec weigh(const vec& e, weight w, const vec& t) { return P::product_minus(e, w.value, t); }
};

// Where rounding is not to nearest, all rows come here: k is then rounded by an instruction.
// A row far from 0 takes the difference first: exact for every x that counts. A row near 0 with an extreme temperature
// takes none. Both in units in which neither the difference nor c leaves the range of the type.
template <class P>
struct far_rows<P, float> : rows<P, float> {
    using base = rows<P, float>;
    static constexpr bool is_rare = true;
    using typename P::vec;

    struct shift : base::shift {
        vec before_unit, after_unit, start, subtrahend, start_difference;
    };
    static SMX_INLINE shift shift_of(const vec& max, const exp_scale<float>& scale)
    {
        const real one{1}, unit = base::as_double(scale.unit);
        const real before = unit < one ? unit : one, after = unit < one ? one : unit;
        const real lowest = real{-131} / base::as_double(scale.inverse_hi) / after; // a difference below counts as it
        const real origin = base::lane(max) * before;
        const real distance = origin < real{0} ? real{0} - origin : origin;
        const bool is_near = distance < real{-0x1p9} * lowest;
        // start: below every x that counts, so near that the difference does not overflow
        const real largest{static_cast<double>(0x1.fffffep+127f)};
        const real start = origin + lowest * real{2} - distance * real{0.5};
        const vec hi = P::set1(scale.hi), lo = P::set1(scale.lo), after_unit = base::narrow(after);
        const vec scaled = is_near ? base::narrow(origin) * after_unit : P::zero();
        const vec rounded = P::sixteenths_in_any_mode(scaled, hi, P::magic()) - P::magic();
        const vec fraction = base::fraction_of(scaled, rounded, hi, lo);
        return {{{{base::narrow(origin), P::zero(), P::set1(scale.inverse_hi)},
                  P::zero(),
                  hi,
                  lo,
                  P::magic() - rounded,
                  fraction,
                  P::zero()},
                 base::powers_of(fraction)},
                base::narrow(before),
                after_unit,
                start < real{0} - largest ? P::minus_infinity() : base::narrow(start),
                is_near ? P::zero() : base::narrow(origin),
                base::narrow(is_near ? origin + lowest : lowest)};
    }
    static SMX_INLINE vec exp_term(const vec& x, const shift& s)
    {
        const vec difference = P::at_least(s.start, x * s.before_unit) - s.subtrahend;
        const vec scaled = P::at_least(s.start_difference, difference) * s.after_unit;
        return base::power(scaled, P::sixteenths_in_any_mode(scaled, s.scale_hi, s.magic), s);
    }
    static SMX_INLINE vec distance(const vec& x, const shift& s)
    {
        return P::zero() - P::at_least(P::set1(-131), P::at_least(s.start, x) - s.max_in_units);
    }
    static SMX_INLINE vec log_prob(const vec& x, const shift& s, real log1p_tail)
    {
        return P::fms((x * s.before_unit - s.max_in_units) * s.after_unit, s.inverse, base::narrow(log1p_tail));
    }
};

template <class P>
struct rows<P, double> : term_rows<P, double> {
    using base = term_rows<P, double>;
    using typename base::differences;
    using typename base::shift;
    using typename P::vec;
    using wide = pair;
    using far_away = far_rows<P, double>;
    using precise = rows;
    using eight = eight_sums<P>;

    // half of the lanes from a, half from b
    static SMX_INLINE vec load_halves(const double* a, const double* b)
    {
        return P::join(_mm256_loadu_pd(a), _mm256_loadu_pd(b));
    }
    static SMX_INLINE void store_halves(double* a, double* b, const vec& x)
    {
        _mm256_storeu_pd(a, P::lower_half(x));
        _mm256_storeu_pd(b, P::upper_half(x));
    }
    // A row of 1 to 8 entries, as for floats.
    template <std::size_t part>
    static SMX_INLINE __m256d load_parts(const double* x, std::size_t n)
    {
        if constexpr (part == 2)
            return _mm256_set_m128d(_mm_loadu_pd(x + n - 2), _mm_loadu_pd(x));
        else
            return _mm256_set1_pd(*x);
    }
    template <std::size_t part>
    static SMX_INLINE void store_parts(double* x, std::size_t n, __m256d four)
    {
        const __m128d two = _mm256_castpd256_pd128(four);
        if constexpr (part == 2) {
            _mm_storeu_pd(x, two);
            _mm_storeu_pd(x + n - 2, _mm256_extractf128_pd(four, 1));
        } else
            *x = two[0];
    }
    static SMX_INLINE vec load_short(const double* x, std::size_t n)
    {
        if (n >= 4)
            return load_halves(x, x + n - 4);
        const __m256d four = n >= 2 ? load_parts<2>(x, n) : load_parts<1>(x, n);
        return P::join(four, four);
    }
    static SMX_INLINE void store_short(double* x, std::size_t n, const vec& v)
    {
        if (n >= 4)
            store_halves(x, x + n - 4, v);
        else if (n >= 2)
            store_parts<2>(x, n, P::lower_half(v));
        else
            store_parts<1>(x, n, P::lower_half(v));
    }

    static SMX_INLINE real lane(const vec& x) { return {P::lane0(x)}; }
    static SMX_INLINE vec narrow(real x) { return P::set1(x.value); }
    static SMX_INLINE vec narrow(pair x) { return P::set1(x.hi.value); }
    static SMX_INLINE pair widen(const vec& x) { return {lane(x), {0}}; }
    static SMX_INLINE vec lift(pair x) { return narrow(power_that_lifts(x.hi, 1022)); }

    // As for floats; lo loses no digit that counts.
    struct term_sum : base::dekker_sum {
        SMX_INLINE term_sum() : base::dekker_sum() {}
        SMX_INLINE void add(const vec& x) { base::dekker_sum::add(x); }
        SMX_INLINE void add(const vec& a, const vec& b) { add(a + b); }
    };
    static SMX_INLINE pair step_total(const vec& e, std::size_t = 0) { return P::lane_sum(e, P::zero()); }
    static SMX_INLINE pair step_total(const vec& a, const vec& b)
    {
        const typename eight::pairs s = eight::two_sum_of(a, b, P::zero());
        return P::lane_sum(s.hi, s.lo);
    }

    struct held_sum : base::dekker_sum {
        explicit SMX_INLINE held_sum(const vec& start_) : base::dekker_sum(start_) {}
        SMX_INLINE void add(const vec& x) { base::dekker_sum::add(x); }
        SMX_INLINE pair total() const { return sum_of_parts(this->upper(), this->lo); }
    };
    static constexpr std::size_t most_small = 32 * P::lanes; // longer rows gain nothing by terms without an origin
    static SMX_INLINE vec upper_part(const vec& start, const vec& x) { return (start + x) - start; }
    static SMX_INLINE pair sum_of_parts(const vec& hi, const vec& lo)
    {
        return fast_two_sum({P::lane_sum(hi)}, {P::lane_sum(lo)});
    }
    // the same of one step, or of two
    static SMX_INLINE pair held_total(const vec& start, const vec& a, std::size_t = 0)
    {
        const vec hi = upper_part(start, a);
        return sum_of_parts(hi, a - hi);
    }
    static SMX_INLINE pair held_total(const vec& start, const vec& a, const vec& b)
    {
        const vec a_hi = upper_part(start, a), b_hi = upper_part(start, b);
        return sum_of_parts(a_hi + b_hi, (a - a_hi) + (b - b_hi));
    }

    // Products of short rows: as one of floats is in double; from their sums, of one row or of eight.
    static constexpr bool is_doubled = false;
    static constexpr std::size_t most_held_of_products = 4 * P::lanes;
    using wide_lanes = P;
    static constexpr std::size_t most_doubled = 4 * P::lanes;
    static SMX_INLINE vec load_doubled(const double* x, std::size_t n)
    {
        return n == P::lanes ? P::load(x, P::every(), P::zero()) : load_short(x, n);
    }
    static SMX_INLINE auto inside_doubled(std::size_t n) { return base::inside_short(n); }
    static SMX_INLINE void store_doubled(double* x, std::size_t n, const vec& v)
    {
        if (n == P::lanes)
            P::store(x, P::every(), v);
        else
            store_short(x, n, v);
    }
    struct product_sums {
        real mass, dot;
    };
    // s counts twice as much as <p, v>: the upper parts of its eight terms, multiples of 2^-45, are added without error
    static SMX_INLINE product_sums product_sums_of(const vec& mass, const vec& dot)
    {
        return {held_total(P::set1(128), mass).hi, {P::lane_sum(dot)}};
    }
    static SMX_INLINE product_sums totals_of(const typename P::sum& mass, const typename P::sum& dot)
    {
        const vec upper = upper_part(P::set1(128), mass.hi);
        return {sum_of_parts(upper, (mass.hi - upper) + mass.lo).hi, dot.rough_total()};
    }
    static SMX_INLINE real sum_of_few(const vec& x) { return {P::lane_sum(x)}; } // s without a winner is not so near 1
    static SMX_INLINE void masses_of(const vec (&x)[8], double (&masses)[8])
    {
        vec upper[8], rest[8];
        for (int r = 0; r < 8; ++r) {
            upper[r] = upper_part(P::set1(128), x[r]);
            rest[r] = x[r] - upper[r];
        }
        P::store(masses, P::every(), eight::of(upper) + eight::of(rest));
    }
    static SMX_INLINE void dots_of(const vec (&x)[8], double (&dots)[8]) { P::store(dots, P::every(), eight::of(x)); }

    // The same where every lane is a row: its sums, hi + lo.
    static constexpr std::size_t most_in_lanes = 22;
    using lane_wide = typename eight::pairs;
    static SMX_INLINE lane_wide lane_term(const vec& start, const vec& x)
    {
        const vec hi = upper_part(start, x);
        return {hi, x - hi};
    }
    static SMX_INLINE lane_wide lane_plus(const lane_wide& a, const lane_wide& b) { return {a.hi + b.hi, a.lo + b.lo}; }
    static SMX_INLINE lane_wide lane_total(const lane_wide& a) { return eight::fast_two_sum_of(a.hi, a.lo); }
    static SMX_INLINE lane_wide lane_zero() { return {P::zero(), P::zero()}; }
    static SMX_INLINE lane_wide lane_add(const lane_wide& sum, const vec& x)
    {
        return eight::two_sum_of(sum.hi, x, sum.lo);
    }
    static constexpr std::size_t tree_width = P::lanes;
    // the sum of a row of more than two steps, n entries x, as held_sum has it
    static SMX_INLINE lane_wide held_lanes(const vec& start, const vec* x, std::size_t n)
    {
        const std::size_t last = n - P::lanes, own = (n - 1) / P::lanes * P::lanes - last;
        vec hi[P::lanes], lo[P::lanes];
        for (std::size_t j = 0; j < P::lanes; ++j) {
            typename base::dekker_sum sum(start);
            for (std::size_t i = j; i - j < last; i += P::lanes)
                sum.add(x[i]);
            sum.add(j >= own ? x[last + j] : P::zero());
            hi[j] = sum.upper();
            lo[j] = sum.lo;
        }
        for (std::size_t half = P::lanes / 2; half > 0; half /= 2)
            for (std::size_t j = 0; j < half; ++j) {
                hi[j] = hi[j] + hi[j + half];
                lo[j] = lo[j] + lo[j + half];
            }
        return lane_total({hi[0], lo[0]});
    }
    static SMX_INLINE pair log1p(pair t) { return detail::log1p<fused>(t); }
    static SMX_INLINE vec log_prob(const vec& x, const differences& s, pair log1p_tail)
    {
        return P::fms(base::difference(x, s), s.inverse, narrow(log1p_tail));
    }
    static SMX_INLINE vec plus(const vec& a, pair b) { return narrow(wide_arithmetic<double>::plus(lane(a), b)); }
    static SMX_INLINE pair less_fraction(pair log, const vec& fraction)
    {
        const real x = lane(fraction) * real{0x1.62e42fefa39efp-1};
        return two_sum(log.hi, log.lo - x);
    }

    struct factor {
        vec hi, lo;
    };
    static SMX_INLINE factor split(pair x) { return {P::set1(x.hi.value), P::set1(x.lo.value)}; }
    static SMX_INLINE factor inverse(pair sum)
    {
        const real hi = apart(real{1} / sum.hi);
        const real error{__builtin_fma(-hi.value, sum.hi.value, 1.0)};
        return split({hi, hi * (error - hi * sum.lo)});
    }
    static SMX_INLINE factor lane_reciprocal(const lane_wide& sum)
    {
        const vec hi = P::set1(1) / sum.hi, error = P::fnma(hi, sum.hi, P::set1(1));
        return {hi, hi * (error - hi * sum.lo)};
    }
    static SMX_INLINE vec times(const vec& e, const factor& f) { return P::fma(e, f.hi, e * f.lo); }

    static SMX_INLINE bool outweighs(const vec& p, pair s) { return wide_arithmetic<double>::outweighs(lane(p), s); }
    static SMX_INLINE vec product(const vec& a, pair b)
    {
        const real x = lane(a);
        return P::set1(__builtin_fma(x.value, b.hi.value, (x * b.lo).value));
    }
    static SMX_INLINE vec minus(pair a, const vec& b) { return narrow(a) - b; }
    static SMX_INLINE vec less(const vec& a, pair b)
    {
        const factor f = split(b);
        return (a - f.hi) - f.lo;
    }
    static SMX_INLINE vec scaled_minus(pair s, const vec& x, pair b) // s x - b
    {
        const factor f = split(s), g = split(b);
        return P::fms(f.hi, x, g.hi) + P::fms(f.lo, x, g.lo);
    }

    static constexpr std::size_t rough_group = 4;
    static SMX_INLINE vec rough_minus(real s, const vec& x, real b) { return P::fms(narrow(s), x, narrow(b)); }

    static SMX_INLINE wide others(wide tail, const vec& e, bool is_largest)
    {
        return wide_arithmetic<double>::others(tail, lane(e), is_largest);
    }
    static SMX_INLINE vec surprise(const vec& x, const vec& max, const differences&,
                                   wide log1p_tail) // -log p, as above
    {
        return narrow((lane(max) - lane(x)) + log1p_tail.hi);
    }
    // max - x of an exponential term, no more than e counts; (max - x) reduced, finite for an absent x
    static SMX_INLINE vec distance(const vec& x, const shift& s) { return s.max_in_units - P::at_least(s.lowest, x); }
    static SMX_INLINE vec lifted(const vec& a) { return a * P::set1(0x1p+100); }
    static SMX_INLINE vec lowered(const vec& a) { return a * P::set1(0x1p-100); }
    static SMX_INLINE vec reduced_distance(const vec& x, const vec& max)
    {
        const vec reduction = P::set1(base::numbers::reduction), least = P::set1(-0x1.fffffffffffffp+1023);
        return P::fnma(P::at_least(least, x), reduction, max * reduction);
    }
    struct weight { // e weight - t; both times 2^900 where they may be subnormal
        factor ratio;
        vec unit, inverse_unit;
    };
    static SMX_INLINE weight weight_of(wide mass, wide sum)
    {
        const bool is_small_mass = wide_arithmetic<double>::is_small(mass);
        const real unit = power_of_two(is_small_mass ? 900 : 0);
        const real a = mass.hi * unit, hi = apart(a / sum.hi);
        const real error{__builtin_fma(-hi.value, sum.hi.value, a.value)};
        return {split({hi, (error + (mass.lo * unit - hi * sum.lo)) / sum.hi}), narrow(unit),
                narrow(power_of_two(is_small_mass ? -900 : 0))};
    }
    static SMX_INLINE vec weigh(const vec& e, const weight& w, const vec& t)
    {
        return P::fma(e, w.ratio.hi, P::fms(e, w.ratio.lo, t * w.unit)) * w.inverse_unit;
    }

    static SMX_INLINE vec quarter() { return P::set1(0.25); }
    static SMX_INLINE vec at_half_bias(const vec& e) { return e * P::set1(0x1p-256); }
    static SMX_INLINE bool is_large(const vec& quarter_difference) { return real{0x1p450} < lane(quarter_difference); }
    static SMX_INLINE vec reduced_unit() { return P::set1(0x1p-600); }
    static SMX_INLINE wide difference(const vec& a, const vec& b) { return two_sum(lane(a), real{0} - lane(b)); }
    // ((x - x_m) - (y - y_m)) / 4, the inner differences without error
    static SMX_INLINE vec quarter_difference(const vec& x, const vec& x_m, const vec& y, const vec& y_m)
    {
        const vec least = P::set1(-0x1.fffffffffffffp+1023);
        const vec a = P::at_least(least, x) * quarter(), b = x_m * quarter();
        const vec c = P::at_least(least, y) * quarter(), d = y_m * quarter();
        const vec x_hi = a - b, y_hi = c - d;
        return (x_hi - y_hi) + (error_of(a, b, x_hi) - error_of(c, d, y_hi));
    }
    static SMX_INLINE vec error_of(const vec& a, const vec& b, const vec& difference) // a - b = difference + this
    {
        const vec b_part = difference - a;
        return (a - (difference - b_part)) - (b + b_part);
    }
    // e^-d - 1 + d, |d| <= 1: d^2/2 (1 - d/3 (1 - d/4 (1 - ...)))
    static SMX_INLINE vec exp_remainder(const vec& d)
    {
        vec series = P::one();
        for (int k = 20; k > 2; --k)
            series = P::fma(d * P::set1(-1.0 / k), series, P::one());
        return d * d * P::set1(0.5) * series;
    }
};

template <class P>
struct far_rows<P, double> : rows<P, double> {
    using base = rows<P, double>;
    static constexpr bool is_rare = true;
    using typename P::vec;

    struct shift : base::shift {
        vec before_unit, after_unit, start, subtrahend, start_difference;
    };
    static SMX_INLINE shift shift_of(const vec& max, const exp_scale<double>& scale)
    {
        const real one{1}, unit = real{scale.unit};
        const real before = unit < one ? unit : one, after = unit < one ? one : unit;
        const real lowest = real{-1050} / real{scale.inverse_hi} / after; // a difference below counts as it
        const real origin = base::lane(max) * before;
        const real distance = origin < real{0} ? real{0} - origin : origin;
        const bool is_near = distance < real{-0x1p30} * lowest;
        // start: below every x that counts, so near that the difference does not overflow
        const real largest{0x1.fffffffffffffp+1023};
        const real below = lowest * real{2} - distance * real{0.5};
        const bool overflows = origin * real{0.5} + below * real{0.5} < real{0} - largest * real{0.5};
        const vec hi = P::set1(scale.hi), lo = P::set1(scale.lo), after_unit = base::narrow(after);
        const vec scaled = is_near ? base::narrow(origin) * after_unit : P::zero();
        const vec rounded = P::sixteenths_in_any_mode(scaled, hi, P::magic()) - P::magic();
        const vec fraction = base::fraction_of(scaled, rounded, hi, lo);
        return {{{{base::narrow(origin), P::zero(), P::set1(scale.inverse_hi)},
                  P::zero(),
                  hi,
                  lo,
                  P::magic() - rounded,
                  fraction,
                  P::zero()},
                 base::powers_of(fraction)},
                base::narrow(before),
                after_unit,
                overflows ? P::minus_infinity() : base::narrow(apart(origin + below)),
                is_near ? P::zero() : base::narrow(origin),
                base::narrow(is_near ? origin + lowest : lowest)};
    }
    static SMX_INLINE vec exp_term(const vec& x, const shift& s)
    {
        const vec difference = P::at_least(s.start, x * s.before_unit) - s.subtrahend;
        const vec scaled = P::at_least(s.start_difference, difference) * s.after_unit;
        return base::power(scaled, P::sixteenths_in_any_mode(scaled, s.scale_hi, s.magic), s);
    }
    static SMX_INLINE vec distance(const vec& x, const shift& s)
    {
        return P::zero() - P::at_least(P::set1(-1050), P::at_least(s.start, x) - s.max_in_units);
    }
    static SMX_INLINE vec log_prob(const vec& x, const shift& s, pair log1p_tail)
    {
        return P::fms((x * s.before_unit - s.max_in_units) * s.after_unit, s.inverse, base::narrow(log1p_tail));
    }
};

// Rows of floats, as doubles.
template <class Doubles>
struct widened_floats : Doubles {
    using scalar = float;
    using far_away = widened_floats<typename Doubles::far_away>;
    using typename Doubles::all;
    using typename Doubles::some;
    using typename Doubles::vec;

    static SMX_INLINE vec broadcast(const float* x) { return Doubles::set1(static_cast<double>(*x)); }
    static SMX_INLINE vec load(const float* x, all inside, const vec&) { return Doubles::load_floats(x, inside); }
    static SMX_INLINE vec load(const float* x, const some& which, const vec& fill)
    {
        return Doubles::select(which, Doubles::load_floats(x, which), fill);
    }
    static SMX_INLINE void store_first(float* x, const vec& v) { *x = static_cast<float>(Doubles::lane0(v)); }
    static SMX_INLINE bool broadcast_equals(const float* x, const vec& a)
    {
        return Doubles::count(Doubles::equals(Doubles::every(), broadcast(x), a)) != 0;
    }
    static SMX_INLINE bool is_nan(const float* x)
    {
        const vec wide = broadcast(x);
        return (Doubles::lane_bits(wide) & 0x7fffffffffffffff) > 0x7ff0000000000000;
    }
};
