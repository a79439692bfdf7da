// SPDX-License-Identifier: BSL-1.0
// g++ -std=c++20 -O2 -Iinclude examples/mode_choice.cpp -o mode_choice && ./mode_choice
//
// Conditional logit (McFadden 1974): how 210 travellers choose between air, train, bus and car.
//
//   utilities        V = X beta            X [modes x variables] of one traveller
//   probabilities    p = softmax(V)        J = d p / d V
//   log-likelihood   L = sum log p_y       over travellers; y is the mode chosen
//   gradient         g = sum X^T (e_y - p)
//   information      H = sum X^T J X       minus the Hessian of L; its inverse is the covariance of the estimates
//
// The Jacobian is also what the model is made for: d p / d beta = J X gives the standard errors of market shares,
// and d p_i / d gc_j = beta_gc J_ij their elasticities.
//
// Usage: mode_choice [FILE]     Exit status: 0, 1 if the results are not those of R, 2 if FILE cannot be used.
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
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace {

constexpr std::array mode_names{"air", "train", "bus", "car"};
constexpr std::array variable_names{"air", "train", "bus", "gc", "ttme", "hinc x air"};
enum variable : std::size_t { air, train, bus, cost, wait, income }; // three constants: car is the base

constexpr std::size_t modes = mode_names.size();
constexpr std::size_t variables = variable_names.size();
constexpr int newton_steps = 6;

using mode_vector = std::array<double, modes>;
using parameters = std::array<double, variables>;
using square_matrix = std::array<parameters, variables>;

// survival::clogit of R 4.2.2
constexpr parameters r_estimates{5.20744329865,  3.86904270152,  3.16319421186,
                                 -0.01550152532, -0.09612479610, 0.01328702625};
constexpr parameters r_standard_errors{0.779055142508, 0.443126852001, 0.450265930527,
                                       0.004407993078, 0.010439846531, 0.010262407000};
constexpr double r_log_likelihood = -199.128368716;

struct traveller {
    std::array<mode_vector, variables> x{}; // x[k] is column k of X
    std::size_t chosen = 0;
};

// ---- Linear algebra

template <std::size_t N>
double dot(const std::array<double, N>& a, const std::array<double, N>& b)
{
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

template <std::size_t N>
double norm(const std::array<double, N>& a)
{
    return std::sqrt(dot(a, a));
}

// H = L L^T, L lower triangular
square_matrix cholesky(const square_matrix& h)
{
    square_matrix l{};
    for (std::size_t i = 0; i < variables; ++i)
        for (std::size_t j = 0; j <= i; ++j) {
            const double rest = h[i][j] - dot(l[i], l[j]); // l[i][j] and what follows are still 0
            if (i == j && !(rest > 0))
                throw std::domain_error("the information matrix is singular: the data do not identify the model");
            l[i][j] = i == j ? std::sqrt(rest) : rest / l[j][j];
        }
    return l;
}

// H^-1 b by L (L^T x) = b
parameters solve(const square_matrix& l, parameters x)
{
    for (std::size_t i = 0; i < variables; ++i) {
        for (std::size_t k = 0; k < i; ++k)
            x[i] -= l[i][k] * x[k];
        x[i] /= l[i][i];
    }
    for (std::size_t i = variables; i-- > 0;) {
        for (std::size_t k = i + 1; k < variables; ++k)
            x[i] -= l[k][i] * x[k];
        x[i] /= l[i][i];
    }
    return x;
}

square_matrix inverse(const square_matrix& h)
{
    const square_matrix l = cholesky(h);
    square_matrix columns{};
    for (std::size_t k = 0; k < variables; ++k) {
        columns[k][k] = 1;
        columns[k] = solve(l, columns[k]);
    }
    return columns;
}

// ---- The model

mode_vector utilities(const traveller& t, const parameters& beta)
{
    mode_vector v{};
    for (std::size_t k = 0; k < variables; ++k)
        for (std::size_t j = 0; j < modes; ++j)
            v[j] += t.x[k][j] * beta[k];
    return v;
}

struct likelihood {
    double log = 0;
    parameters gradient{};
    square_matrix information{};
};

likelihood likelihood_at(const parameters& beta, const std::vector<traveller>& travellers)
{
    likelihood sum;
    for (const traveller& t : travellers) {
        const mode_vector v = utilities(t, beta);
        const mode_vector p = smx::softmax(v);
        sum.log += smx::log_softmax(v)[t.chosen];
        for (std::size_t k = 0; k < variables; ++k) {
            sum.gradient[k] += t.x[k][t.chosen] - dot(t.x[k], p);
            mode_vector jx{};
            smx::softmax_jvp(p, t.x[k], jx); // column k of J X
            for (std::size_t m = 0; m < variables; ++m)
                sum.information[m][k] += dot(t.x[m], jx);
        }
    }
    return sum;
}

struct market_shares {
    mode_vector mean{};                       // share_j = mean over travellers of p_j
    std::array<parameters, modes> gradient{}; // d share_j / d beta = mean of X^T J e_j
};

market_shares shares_at(const parameters& beta, const std::vector<traveller>& travellers)
{
    const double weight = 1 / static_cast<double>(travellers.size());
    market_shares shares;
    for (const traveller& t : travellers) {
        const mode_vector p = smx::softmax(utilities(t, beta));
        for (std::size_t j = 0; j < modes; ++j) {
            shares.mean[j] += weight * p[j];
            mode_vector je{};
            je[j] = 1;
            smx::softmax_vjp(p, je, je); // e_j^T J
            for (std::size_t k = 0; k < variables; ++k)
                shares.gradient[j][k] += weight * dot(je, t.x[k]);
        }
    }
    return shares;
}

// E_ij = % by which share i changes when gc of mode j rises by 1 % for everybody
//      = sum p_i (gc_j / p_i d p_i / d gc_j) / sum p_i = sum beta_gc gc_j J_ij / sum p_i
std::array<mode_vector, modes> elasticities_at(const parameters& beta, const std::vector<traveller>& travellers)
{
    std::array<mode_vector, modes> elasticity{};
    mode_vector total{};
    for (const traveller& t : travellers) {
        const mode_vector p = smx::softmax(utilities(t, beta));
        const auto jacobian = smx::softmax_jacobian(p);
        for (std::size_t i = 0; i < modes; ++i) {
            total[i] += p[i];
            for (std::size_t j = 0; j < modes; ++j)
                elasticity[i][j] += beta[cost] * t.x[cost][j] * jacobian[i][j];
        }
    }
    for (std::size_t i = 0; i < modes; ++i)
        for (double& e : elasticity[i])
            e /= total[i];
    return elasticity;
}

// ---- The results

bool equal_to_8_digits(double computed, double golden)
{
    return std::abs(computed - golden) < 0.5e-8 * std::abs(golden);
}

// beta <- beta + H^-1 g from beta = 0: L is concave
parameters maximum_likelihood(const std::vector<traveller>& travellers)
{
    std::printf("Newton    log-likelihood    |gradient|        |step|\n");
    parameters beta{};
    for (int step = 0;; ++step) {
        const likelihood l = likelihood_at(beta, travellers);
        const parameters delta = solve(cholesky(l.information), l.gradient);
        std::printf("%6d  %16.9f  %12.1e  %12.1e\n", step, l.log, norm(l.gradient), norm(delta));
        if (step == newton_steps)
            return beta;
        std::transform(beta.begin(), beta.end(), delta.begin(), beta.begin(), std::plus<>());
    }
}

bool report_estimates(const parameters& beta, const square_matrix& covariance, double log_likelihood)
{
    std::printf("\n                 estimate                 R    std. error              R       z\n");
    bool equal = equal_to_8_digits(log_likelihood, r_log_likelihood);
    for (std::size_t k = 0; k < variables; ++k) {
        const double standard_error = std::sqrt(covariance[k][k]);
        std::printf("%-10s  %13.10f  %13.10f  %12.10f  %12.10f  %6.2f\n", variable_names[k], beta[k], r_estimates[k],
                    standard_error, r_standard_errors[k], beta[k] / standard_error);
        equal = equal && equal_to_8_digits(beta[k], r_estimates[k]) &&
                equal_to_8_digits(standard_error, r_standard_errors[k]);
    }
    std::printf("estimates, standard errors and log-likelihood %s those of R to 8 digits\n",
                equal ? "equal" : "do NOT equal");
    return equal;
}

// one character for each percent
std::string error_bar(double low, double mid, double high)
{
    const auto at = [](double share) {
        return static_cast<std::size_t>(std::lround(std::clamp(share, 0.0, 1.0) * 100));
    };
    std::string bar = std::string(at(low), ' ') + std::string(at(high) - at(low) + 1, '-');
    bar[at(low)] = '[';
    bar[at(high)] = ']';
    bar[at(mid)] = 'o';
    return bar;
}

void report_shares(const market_shares& shares, const square_matrix& covariance)
{
    constexpr double z = 1.959963984540054; // 97.5 % quantile of the normal distribution
    std::printf("\nmarket share  95 %% interval     0         10        20        30        40        50 %%\n");
    for (std::size_t j = 0; j < modes; ++j) {
        const parameters& g = shares.gradient[j];
        parameters cg{};
        for (std::size_t k = 0; k < variables; ++k)
            cg[k] = dot(covariance[k], g);
        const double half_width = z * std::sqrt(dot(g, cg)); // delta method: variance of share_j = g^T C g
        const double low = shares.mean[j] - half_width;
        const double high = shares.mean[j] + half_width;
        std::printf("%-6s%6.4f  [%6.4f, %6.4f]  %s\n", mode_names[j], shares.mean[j], low, high,
                    error_bar(low, shares.mean[j], high).c_str());
    }
}

void report_elasticities(const std::array<mode_vector, modes>& elasticity)
{
    std::printf("\n%% change of share when gc rises by 1 %%:\n          of air  of train    of bus    of car\n");
    for (std::size_t i = 0; i < modes; ++i)
        std::printf("%-6s%10.4f%10.4f%10.4f%10.4f\n", mode_names[i], elasticity[i][0], elasticity[i][1],
                    elasticity[i][2], elasticity[i][3]);
}

// ---- The data: one row for each traveller and mode

constexpr std::array column_names{"individual", "mode", "choice", "ttme", "invc", "invt", "gc", "hinc", "psize"};
enum column : std::size_t { individual, mode, choice, ttme, invc, invt, gc, hinc, psize };
using record = std::array<int, column_names.size()>;

constexpr std::size_t travellers_in_file = 210;

struct unusable_data : std::runtime_error {
    using std::runtime_error::runtime_error;
};

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

    [[nodiscard]] std::vector<std::string_view> fields() const
    {
        std::vector<std::string_view> result;
        const std::string_view text = text_;
        for (std::size_t begin = 0, end = 0; end != text.npos; begin = end + 1) {
            end = text.find(';', begin);
            result.push_back(text.substr(begin, end - begin));
        }
        if (result.size() != column_names.size())
            fail("number of fields is " + std::to_string(result.size()) + ", not " +
                 std::to_string(column_names.size()));
        return result;
    }

    [[nodiscard]] record numbers() const
    {
        record result{};
        const auto texts = fields();
        for (std::size_t c = 0; c < result.size(); ++c) {
            const char* const end = texts[c].data() + texts[c].size();
            const auto [stop, error] = std::from_chars(texts[c].data(), end, result[c]);
            if (error != std::errc() || stop != end)
                fail(std::string(column_names[c]) + " is '" + std::string(texts[c]) + "', not a whole number");
        }
        return result;
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

// the traveller whose first line has been read
traveller read_traveller(data_file& file)
{
    traveller t;
    std::string name;
    int choices = 0;
    for (std::size_t j = 0; j < modes; ++j) {
        if (j > 0 && !file.next_line())
            file.fail("the file ends within " + name);
        const record row = file.numbers();
        const std::string row_name = "traveller " + std::to_string(row[individual]);
        if (j == 0)
            name = row_name;
        if (row_name != name)
            file.fail(name + " has " + std::to_string(j) + " rows, not " + std::to_string(modes));
        if (row[mode] != static_cast<int>(j) + 1)
            file.fail("mode is " + std::to_string(row[mode]) + ", not " + std::to_string(j + 1));
        if (row[choice] != 0 && row[choice] != 1)
            file.fail("choice is " + std::to_string(row[choice]) + ", not 0 or 1");

        if (row[choice] == 1) {
            t.chosen = j;
            ++choices;
        }
        t.x[air][j] = j == air ? 1 : 0;
        t.x[train][j] = j == train ? 1 : 0;
        t.x[bus][j] = j == bus ? 1 : 0;
        t.x[cost][j] = row[gc];
        t.x[wait][j] = row[ttme];
        t.x[income][j] = j == air ? row[hinc] : 0;
    }
    if (choices != 1)
        file.fail(name + " has chosen " + std::to_string(choices) + " modes, not 1");
    return t;
}

std::vector<traveller> read_travellers(const std::string& path)
{
    data_file file(path);
    if (!file.next_line())
        file.fail("the file is empty");
    const auto header = file.fields();
    for (std::size_t c = 0; c < header.size(); ++c)
        if (header[c] != column_names[c])
            file.fail("column " + std::to_string(c + 1) + " is '" + std::string(header[c]) + "', not " +
                      column_names[c]);

    std::vector<traveller> travellers;
    while (file.next_line())
        travellers.push_back(read_traveller(file));
    if (travellers.size() != travellers_in_file)
        file.fail("the file ends after " + std::to_string(travellers.size()) + " travellers, not " +
                  std::to_string(travellers_in_file));
    return travellers;
}

// examples/data as seen from the working directory, else beside this source file
std::string default_path()
{
    const std::filesystem::path path = "examples/data/modechoice.csv";
    const auto beside_source = std::filesystem::path(__FILE__).parent_path() / "data/modechoice.csv";
    std::error_code none;
    return (!exists(path, none) && exists(beside_source, none) ? beside_source : path).string();
}

} // namespace

int main(int argc, char** argv)
{
    try {
        if (argc > 2)
            throw unusable_data("usage: mode_choice [FILE]");
        const auto travellers = read_travellers(argc == 2 ? argv[1] : default_path());
        std::printf("Conditional logit: %zu travellers, %zu modes, car is the base\n\n", travellers.size(), modes);

        const parameters beta = maximum_likelihood(travellers);
        const likelihood l = likelihood_at(beta, travellers);
        const square_matrix covariance = inverse(l.information);
        const bool equal = report_estimates(beta, covariance, l.log);
        report_shares(shares_at(beta, travellers), covariance);
        report_elasticities(elasticities_at(beta, travellers));
        return equal ? 0 : 1;
    } catch (const unusable_data& error) {
        std::fprintf(stderr, "mode_choice: %s\n", error.what());
        return 2;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "mode_choice: %s\n", error.what());
        return 1;
    }
}
