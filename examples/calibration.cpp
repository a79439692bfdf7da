// SPDX-License-Identifier: BSL-1.0
// g++ -std=c++20 -O2 -Iinclude examples/calibration.cpp -o calibration && ./calibration
//
// Temperature scaling (Guo, Pleiss, Sun & Weinberger 2017): a classifier whose logits are too large by a factor is too
// sure of itself; one number T, softmax(logits / T), fitted to held-out labels, puts that right. With beta = 1 / T the
// loss is convex, and one pass over the data gives its value, slope and curvature:
//   l(beta) = sum -log p_y,  l' = sum <p - e_y, x>,  l'' = sum <x, J x>,  p = softmax(beta x).
// The data is made up here, from a seed, so that the true T is known: ./calibration --temperature 3 --svg picture.svg
#include <smx/smx.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr const char* help = R"(Usage: calibration [--temperature T] [--seed N] [--svg FILE] [--help]

Makes validation logits that are too large by the factor T, finds T from the labels, and draws reliability diagrams.

  --temperature T  from 0.1 to 10  (default: 2.5)
  --svg FILE       writes the diagrams, too

Exit status: 0, or 2 if the arguments cannot be used or FILE cannot be written.
)";

constexpr std::size_t rows = 5000, classes = 10, bins = 10;
using row = std::array<double, classes>;

struct unusable_argument : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// ---- data -----------------------------------------------------------------------------------------------------------

class random_numbers { // splitmix64 (Steele, Lea & Flood 2014)
public:
    double uniform() // (0, 1)
    {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return (static_cast<double>((z ^ (z >> 31)) >> 12) + 0.5) * 0x1p-52;
    }
    double normal() { return std::sqrt(-2 * std::log(uniform())) * std::cos(6.283185307179586 * uniform()); }

private:
    std::uint64_t state_ = 1;
};

struct data_set {
    std::vector<row> logits;
    std::vector<std::size_t> labels;
};

std::size_t argmax(const row& x) { return static_cast<std::size_t>(std::max_element(x.begin(), x.end()) - x.begin()); }

// Logits T x, labels drawn from softmax(x) or all as predicted.
data_set make_data(double temperature, bool all_right)
{
    random_numbers random;
    data_set data;
    for (std::size_t i = 0; i < rows; ++i) {
        row x, probs;
        for (double& each : x)
            each = 2 * random.normal();
        smx::softmax(x, probs);
        std::size_t label = 0;
        for (double rest = random.uniform(); label + 1 < classes && rest >= probs[label]; ++label)
            rest -= probs[label];
        for (double& each : x)
            each *= temperature;
        data.logits.push_back(x);
        data.labels.push_back(all_right ? argmax(x) : label);
    }
    return data;
}

// ---- the fit --------------------------------------------------------------------------------------------------------

struct loss {
    double value = 0, slope = 0, curvature = 0;
};

loss loss_at(double beta, const data_set& data)
{
    loss sum;
    row scaled, p, Jx;
    for (std::size_t i = 0; i < data.logits.size(); ++i) {
        const row& x = data.logits[i];
        std::transform(x.begin(), x.end(), scaled.begin(), [&](double each) { return beta * each; });
        sum.value += smx::cross_entropy_gradient(scaled, data.labels[i], p); // p - e_y
        sum.slope += std::inner_product(x.begin(), x.end(), p.begin(), 0.0);
        p[data.labels[i]] += 1;
        smx::softmax_jvp(p, x, Jx);
        sum.curvature += std::inner_product(x.begin(), x.end(), Jx.begin(), 0.0);
    }
    return sum;
}

// l is convex, so it has its least value at some 0 < beta < inf if and only if l'(0) < 0 < l'(inf) = sum (max - x_y).
const char* why_there_is_none(const data_set& data)
{
    double slope_at_infinity = 0;
    for (std::size_t i = 0; i < data.logits.size(); ++i)
        slope_at_infinity += data.logits[i][argmax(data.logits[i])] - data.logits[i][data.labels[i]];
    if (slope_at_infinity == 0)
        return "every prediction is right: the loss falls for ever as T goes to 0, no temperature is best";
    if (loss_at(0, data).slope >= 0)
        return "the logits are no better than chance: the loss falls for ever as T grows, no temperature is best";
    return nullptr;
}

// Newton's steps as long as they stay where the slope changes its sign; else that range is halved, or reach doubled.
double fitted_beta(const data_set& data)
{
    if (const char* const why = why_there_is_none(data)) {
        std::printf("%s\n", why);
        return 0;
    }
    double beta = 1, least = 0, most = HUGE_VAL;
    std::printf("step      beta         T      loss         slope\n");
    for (int step = 0; step < 100; ++step) {
        const loss l = loss_at(beta, data);
        std::printf("%4d  %8.5f  %8.5f  %8.5f  %12.3e\n", step, beta, 1 / beta, l.value / rows, l.slope / rows);
        const double newton = beta - l.slope / l.curvature;
        if (std::fabs(newton - beta) <= 1e-10 * beta)
            return newton;
        (l.slope < 0 ? least : most) = beta;
        const double other = most < HUGE_VAL ? (least + most) / 2 : 2 * beta;
        beta = newton > least && newton < most ? newton : other;
    }
    return beta;
}

// ---- the diagram ----------------------------------------------------------------------------------------------------

struct reliability {
    std::string title;
    std::array<double, bins> count{}, confidence{}, accuracy{};
    double error = 0; // expected calibration error: mean |accuracy - confidence|
};

reliability reliability_at(double beta, const data_set& data, const char* title)
{
    reliability r{title};
    for (std::size_t i = 0; i < data.logits.size(); ++i) {
        row p;
        smx::softmax(data.logits[i], p, {.temperature = 1 / beta});
        const std::size_t predicted = argmax(p);
        const auto bin = std::min(bins - 1, static_cast<std::size_t>(p[predicted] * bins));
        r.count[bin] += 1;
        r.confidence[bin] += p[predicted];
        r.accuracy[bin] += predicted == data.labels[i] ? 1 : 0;
    }
    for (std::size_t b = 0; b < bins; ++b) {
        r.error += std::fabs(r.accuracy[b] - r.confidence[b]) / rows;
        r.confidence[b] /= std::max(1.0, r.count[b]);
        r.accuracy[b] /= std::max(1.0, r.count[b]);
    }
    return r;
}

void print(const reliability& r)
{
    std::printf("\n%s, calibration error %.4f\nconfidence  rows  right   # right, | confident\n", r.title.c_str(),
                r.error);
    for (std::size_t b = 0; b < bins; ++b) {
        std::string bar(static_cast<std::size_t>(std::lround(40 * r.accuracy[b])), '#');
        bar.resize(41, ' ');
        bar[static_cast<std::size_t>(std::lround(40 * r.confidence[b]))] = '|';
        if (r.count[b] > 0)
            std::printf("     %.3f  %4.0f  %.3f   %s\n", r.confidence[b], r.count[b], r.accuracy[b], bar.c_str());
    }
}

void write_svg(std::ostream& out, const std::array<reliability, 2>& both)
{
    out << "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 500 270\" font-family=\"sans-serif\" "
           "font-size=\"12\">\n<rect width=\"500\" height=\"270\" fill=\"white\"/>\n";
    for (const reliability& r : both) {
        const char* const frame = "<path d=\"M0 200 h200 v-200 z\" fill=\"none\" stroke=\"#cc3311\"/>\n";
        out << "<g transform=\"translate(" << (&r == &both[0] ? 20 : 270) << " 40)\">\n<text y=\"-16\">" << r.title
            << ", error " << r.error << "</text>\n<path fill=\"#4477aa\" d=\"";
        for (std::size_t b = 0; b < bins; ++b)
            out << "M" << 20 * b << " 200 v" << -200 * r.accuracy[b] << " h19 V200 z ";
        out << "\"/>\n" << frame << "<text y=\"218\">confidence; bars: share right</text>\n</g>\n";
    }
    out << "</svg>\n" << std::flush;
}

void calibrate(double true_temperature, const std::string& svg)
{
    std::printf("Labels at random, true T = %g\n", true_temperature);
    const data_set data = make_data(true_temperature, false);
    const double beta = fitted_beta(data), temperature = 1 / beta;
    const double error = temperature * temperature / std::sqrt(loss_at(beta, data).curvature);
    std::printf("T = %.4f, standard error %.4f: %.1f of them from the true T\n", temperature, error,
                std::fabs(temperature - true_temperature) / error);

    const std::array<reliability, 2> both = {reliability_at(1, data, "Before"), reliability_at(beta, data, "After")};
    std::for_each(both.begin(), both.end(), print);
    if (std::ofstream out; !svg.empty()) {
        out.open(svg);
        write_svg(out, both);
        if (!out)
            throw unusable_argument("--svg '" + svg + "': cannot be written");
    }
    std::printf("\nLabels all as predicted\n");
    fitted_beta(make_data(true_temperature, true));
}

} // namespace

int main(int argc, char** argv)
{
    try {
        double temperature = 2.5;
        std::string svg;
        for (int i = 1; i < argc; ++i) {
            const std::string option = argv[i];
            if (option == "--help")
                return std::fputs(help, stdout) < 0 ? 2 : 0;
            if (option != "--temperature" && option != "--svg")
                throw unusable_argument("unknown argument '" + option + "', see --help");
            if (++i == argc)
                throw unusable_argument(option + " needs a value");
            char* end = argv[i];
            if (option == "--svg")
                svg = argv[i];
            else if (temperature = std::strtod(argv[i], &end);
                     *end != '\0' || !(temperature >= 0.1 && temperature <= 10))
                throw unusable_argument("--temperature '" + std::string(argv[i]) +
                                        "': must be a number from 0.1 to 10");
        }
        calibrate(temperature, svg);
    } catch (const unusable_argument& error) {
        std::fprintf(stderr, "calibration: %s\n", error.what());
        return 2;
    }
}
