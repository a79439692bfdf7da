// SPDX-License-Identifier: BSL-1.0
// g++ -std=c++20 -O2 -Iinclude examples/newton_logistic.cpp -o newton_logistic && ./newton_logistic
//
// Multinomial logistic regression by Newton's method with the exact Hessian: which species is a penguin?
//
//   logits       z = W x           x: 1 and four standardised measurements; the row of W of the first species is 0
//   objective    F(W) = sum -log softmax(z)_y + 1/2 |W|^2                over penguins; intercepts are penalised too
//   gradient     sum (p - e_y) x^T + W
//   Hessian      sum J (x) x x^T + I    (Kronecker product), J the Jacobian of softmax at z without its first row and column
//
// J is what boosted trees and many optimisers replace by a diagonal, at the price of hundreds of steps in place of seven. Here
// it is smx::jacobian_view, exact where a penguin's species is all but certain.
//
// Usage: newton_logistic [FILE]     Exit status: 0, 1 if the results are not those of R, 2 if FILE cannot be used.
#include <smx/smx.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#if __has_include(<unistd.h>)
#include <unistd.h> // isatty
#endif

namespace {

constexpr std::size_t species = 3, free_species = species - 1, features = 5, parameters = free_species * features;
constexpr std::array<const char*, species> species_names{"Adelie", "Chinstrap", "Gentoo"};
constexpr std::array<const char*, features> feature_names{"intercept", "bill length", "bill depth", "flipper length",
                                                          "body mass"};

// R 4.2.2, nnet::multinom(species ~ scale(measurements), decay = 0.5)
constexpr double r_objective = 37.68854385, r_accuracy = 0.9883;

using feature_vector = std::array<double, features>;
using species_vector = std::array<double, species>;
using parameter_vector = std::array<double, parameters>; // W without its first row, row by row
using square_matrix = std::array<parameter_vector, parameters>;

struct penguin {
    feature_vector x{}; // 1, then what has been measured
    std::size_t y = 0;
};

// ---- The model

species_vector logits(const parameter_vector& w, const feature_vector& x)
{
    species_vector z{};
    for (std::size_t k = 0; k < parameters; ++k)
        z[1 + k / features] += w[k] * x[k % features];
    return z;
}

struct objective {
    double value = 0;
    parameter_vector gradient{};
    square_matrix hessian{};
};

double value_at(const parameter_vector& w, const std::vector<penguin>& penguins, double penalty)
{
    double value = 0;
    for (const double each : w)
        value += penalty / 2 * each * each;
    for (const penguin& each : penguins)
        value -= smx::log_softmax(logits(w, each.x))[each.y];
    return value;
}

objective objective_at(const parameter_vector& w, const std::vector<penguin>& penguins, double penalty)
{
    objective f{value_at(w, penguins, penalty), {}, {}};
    for (std::size_t k = 0; k < parameters; ++k) {
        f.gradient[k] = penalty * w[k];
        f.hessian[k][k] = penalty;
    }
    for (const penguin& each : penguins) {
        const species_vector p = smx::softmax(logits(w, each.x));
        const smx::jacobian_view J(p);
        for (std::size_t k = 0; k < parameters; ++k) {
            const std::size_t i = 1 + k / features, a = k % features;
            // p_i - [i = y], the winner's 1 - p as the sum of the others
            const double residual = i != each.y ? p[i] : -(p[(i + 1) % species] + p[(i + 2) % species]);
            f.gradient[k] += residual * each.x[a];
            for (std::size_t l = 0; l < parameters; ++l)
                f.hessian[k][l] += J(i, 1 + l / features) * each.x[a] * each.x[l % features];
        }
    }
    return f;
}

// H^-1 g by the Cholesky decomposition of H
parameter_vector solve(square_matrix h, parameter_vector g)
{
    for (std::size_t i = 0; i < parameters; ++i) { // h becomes L, row by row; g becomes L^-1 g
        for (std::size_t j = 0; j <= i; ++j) {
            for (std::size_t k = 0; k < j; ++k)
                h[i][j] -= h[i][k] * h[j][k];
            if (j < i)
                h[i][j] /= h[j][j];
            else if (!(h[i][i] > 0))
                throw std::domain_error("the Hessian is singular");
            else
                h[i][i] = std::sqrt(h[i][i]);
        }
        for (std::size_t k = 0; k < i; ++k)
            g[i] -= h[i][k] * g[k];
        g[i] /= h[i][i];
    }
    for (std::size_t i = parameters; i-- > 0;) {
        for (std::size_t k = i + 1; k < parameters; ++k)
            g[i] -= h[k][i] * g[k];
        g[i] /= h[i][i];
    }
    return g;
}

double norm(const parameter_vector& w)
{
    double sum = 0;
    for (const double each : w)
        sum += each * each;
    return std::sqrt(sum);
}

std::size_t prediction(const parameter_vector& w, const feature_vector& x)
{
    const species_vector z = logits(w, x);
    return static_cast<std::size_t>(std::max_element(z.begin(), z.end()) - z.begin());
}

double accuracy(const parameter_vector& w, const std::vector<penguin>& penguins)
{
    const auto right = std::count_if(penguins.begin(), penguins.end(),
                                     [&](const penguin& each) { return prediction(w, each.x) == each.y; });
    return static_cast<double>(right) / static_cast<double>(penguins.size());
}

// ---- Newton

// One line that is written over on a terminal; elsewhere one line for each step.
class progress {
public:
    explicit progress(bool live)
    {
#if __has_include(<unistd.h>)
        terminal_ = live && isatty(STDOUT_FILENO) != 0;
#else
        static_cast<void>(live);
#endif
    }
    void show(int step, const objective& f, const parameter_vector& w) const
    {
        std::printf("%sstep %2d  objective %14.8f  |gradient| %8.1e  |W| %9.4f%s", terminal_ ? "\r" : "", step, f.value,
                    norm(f.gradient), norm(w), terminal_ ? "" : "\n");
        std::fflush(stdout);
    }
    void done() const { std::fputs(terminal_ ? "\n" : "", stdout); }

private:
    bool terminal_ = false;
};

// W <- W - t H^-1 g from W = 0, t halved until the objective falls. It ends where the quadratic model promises no more than
// what a rounding takes away, or after so many steps.
parameter_vector minimise(const std::vector<penguin>& penguins, double penalty, int most_steps, bool live)
{
    progress line(live);
    parameter_vector w{};
    for (int step = 0;; ++step) {
        const objective f = objective_at(w, penguins, penalty);
        line.show(step, f, w);
        if (step == most_steps)
            break;
        const parameter_vector direction = solve(f.hessian, f.gradient);
        double promise = 0;
        for (std::size_t k = 0; k < parameters; ++k)
            promise += f.gradient[k] * direction[k] / 2;
        if (promise < 1e-15 * f.value)
            break;
        parameter_vector next{};
        for (double t = 1; t > 1e-6; t /= 2) {
            for (std::size_t k = 0; k < parameters; ++k)
                next[k] = w[k] - t * direction[k];
            if (value_at(next, penguins, penalty) < f.value + 1e-14 * f.value)
                break;
        }
        w = next;
    }
    line.done();
    return w;
}

// ---- The results

void report_confusion(const parameter_vector& w, const std::vector<penguin>& penguins)
{
    std::array<std::array<int, species>, species> count{};
    for (const penguin& each : penguins)
        ++count[each.y][prediction(w, each.x)];
    std::printf("\n%-22s", "is \\ taken for");
    for (const char* name : species_names)
        std::printf("%12s", name);
    for (std::size_t i = 0; i < species; ++i) {
        std::printf("\n%-22s", species_names[i]);
        for (std::size_t j = 0; j < species; ++j)
            std::printf("%12d", count[i][j]);
    }
    std::printf("\n");
}

void report_coefficients(const parameter_vector& w)
{
    std::printf("\n%-22s", "log odds to Adelie");
    for (const char* name : feature_names)
        std::printf("%16s", name);
    for (std::size_t k = 0; k < parameters; ++k) {
        if (k % features == 0)
            std::printf("\n%-22s", species_names[1 + k / features]);
        std::printf("%16.6f", w[k]);
    }
    std::printf("\n");
}

bool report_golden(const parameter_vector& w, const std::vector<penguin>& penguins)
{
    const double value = value_at(w, penguins, 1), right = accuracy(w, penguins);
    const bool equal = std::abs(value - r_objective) < 1e-8 && std::abs(right - r_accuracy) < 5e-5;
    std::printf("\nobjective %.8f (R: %.8f), accuracy %.4f (R: %.4f): %s\n", value, r_objective, right, r_accuracy,
                equal ? "equal" : "NOT equal");
    return equal;
}

void show_why_the_penalty(const std::vector<penguin>& penguins)
{
    std::printf("\nWhy the penalty? Without it, the same steps:\n");
    const parameter_vector w = minimise(penguins, 0, 14, false);
    std::printf(
        "All species are told apart (accuracy %.4f): planes separate them, so that a larger W is always better. The\n"
        "objective goes to 0, |W| to infinity, and there is no minimum to be found.\n",
        accuracy(w, penguins));
}

// ---- The data

struct unusable_data : std::runtime_error {
    using std::runtime_error::runtime_error;
};

constexpr std::string_view header =
    "species,island,bill_length_mm,bill_depth_mm,flipper_length_mm,body_mass_g,sex,year";
constexpr std::size_t penguins_in_file = 342; // with all measurements

class data_file {
public:
    explicit data_file(const std::string& path) : path_(path), in_(path, std::ios::binary)
    {
        if (const int reason = errno; !in_)
            fail("cannot be opened: " + std::generic_category().message(reason));
    }

    bool next_line()
    {
        ++line_;
        if (!std::getline(in_, text_)) {
            if (in_.bad())
                fail("cannot be read");
            return false;
        }
        if (text_.ends_with('\r'))
            text_.pop_back();
        return true;
    }
    const std::string& text() const { return text_; }

    // false: a measurement is missing
    bool read(penguin& out) const
    {
        std::vector<std::string_view> fields;
        for (std::size_t begin = 0, end = 0; end != std::string_view::npos; begin = end + 1) {
            end = text_.find(',', begin);
            fields.push_back(std::string_view(text_).substr(begin, end - begin));
        }
        if (fields.size() != 8)
            fail("number of fields is " + std::to_string(fields.size()) + ", not 8");
        const auto name = std::find(species_names.begin(), species_names.end(), fields[0]);
        if (name == species_names.end())
            fail("species is '" + std::string(fields[0]) + "'");
        out.y = static_cast<std::size_t>(name - species_names.begin());
        out.x[0] = 1;
        for (std::size_t k = 1; k < features; ++k) {
            const std::string_view field = fields[k + 1];
            if (field == "NA")
                return false;
            const auto [stop, error] = std::from_chars(field.data(), field.data() + field.size(), out.x[k]);
            if (error != std::errc() || stop != field.data() + field.size() || !std::isfinite(out.x[k]))
                fail(std::string(feature_names[k]) + " is '" + std::string(field) + "', not a number");
        }
        return true;
    }

    [[noreturn]] void fail(const std::string& what) const
    {
        throw unusable_data(path_ + ":" + std::to_string(std::max(line_, std::size_t(1))) + ": " + what);
    }

private:
    std::string path_;
    std::ifstream in_;
    std::size_t line_ = 0;
    std::string text_;
};

// mean 0 and variance 1, with n - 1 as in R's scale()
void standardise(std::vector<penguin>& penguins)
{
    const double n = static_cast<double>(penguins.size());
    for (std::size_t k = 1; k < features; ++k) {
        double mean = 0, squares = 0;
        for (const penguin& each : penguins)
            mean += each.x[k] / n;
        for (const penguin& each : penguins)
            squares += (each.x[k] - mean) * (each.x[k] - mean);
        for (penguin& each : penguins)
            each.x[k] = (each.x[k] - mean) / std::sqrt(squares / (n - 1));
    }
}

std::vector<penguin> read_penguins(const std::string& path)
{
    data_file file(path);
    if (!file.next_line())
        file.fail("the file is empty");
    if (file.text() != header)
        file.fail("the header is not '" + std::string(header) + "'");
    std::vector<penguin> penguins;
    for (penguin each; file.next_line();)
        if (file.read(each))
            penguins.push_back(each);
    if (penguins.size() != penguins_in_file)
        file.fail("the file ends after " + std::to_string(penguins.size()) + " penguins with all measurements, not " +
                  std::to_string(penguins_in_file));
    standardise(penguins);
    return penguins;
}

// examples/data as seen from the working directory, else beside this source file
std::string default_path()
{
    const std::filesystem::path path = "examples/data/penguins.csv";
    const auto beside_source = std::filesystem::path(__FILE__).parent_path() / "data/penguins.csv";
    std::error_code none;
    return (!exists(path, none) && exists(beside_source, none) ? beside_source : path).string();
}

} // namespace

int main(int argc, char** argv)
{
    try {
        if (argc > 2)
            throw unusable_data("usage: newton_logistic [FILE]");
        const auto penguins = read_penguins(argc == 2 ? argv[1] : default_path());
        std::printf("%zu penguins, %zu species, %zu coefficients\n", penguins.size(), species, parameters);
        const parameter_vector w = minimise(penguins, 1, 50, true);
        const bool equal = report_golden(w, penguins);
        report_confusion(w, penguins);
        report_coefficients(w);
        show_why_the_penalty(penguins);
        return equal ? 0 : 1;
    } catch (const unusable_data& error) {
        std::fprintf(stderr, "newton_logistic: %s\n", error.what());
        return 2;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "newton_logistic: %s\n", error.what());
        return 1;
    }
}
