// SPDX-License-Identifier: BSL-1.0
// g++ -std=c++20 -O2 -Iinclude examples/demo.cpp -o demo && ./demo
//
// Softmax and its Jacobian as a picture, in the terminal or as SVG: ./demo 3 1.5 -2 --temperature 0.7 --svg picture.svg
#include <smx/smx.hpp>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#if __has_include(<unistd.h>)
#include <unistd.h> // isatty
#endif

namespace {

constexpr std::string_view help = R"(Usage: demo [LOGIT...] [--temperature T] [--svg FILE] [--help]

Shows softmax(logits / T) and its Jacobian at the temperatures T / 2, T and 2 T.

  LOGIT            a number; -inf is an entry that is absent     (default: 1.2 3 0.4 2.1 -0.8 1.6)
  --temperature T  greater than 0                                (default: 1)
  --svg FILE       writes the picture, too

Colours only on a terminal, and not if NO_COLOR is set.
Exit status: 0, or 2 if the arguments cannot be used or FILE cannot be written.
)";

struct unusable_argument : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct arguments {
    std::vector<double> logits;
    double temperature = 1;
    std::string svg;
    bool help = false;
};

// of what is no number
bool looks_like_option(const std::string& text)
{
    return text.size() > 1 && text[0] == '-' &&
           (text[1] == '-' || std::isalpha(static_cast<unsigned char>(text[1])) != 0);
}

double checked_number(const std::string& text)
{
    char* end = nullptr;
    errno = 0;
    const double value = std::strtod(text.c_str(), &end);
    if (end == text.c_str() || *end != '\0')
        throw unusable_argument((looks_like_option(text) ? "unknown option '" : "not a number: '") + text + "'");
    if (errno == ERANGE && std::isinf(value))
        throw unusable_argument("out of range: '" + text + "'");
    return value;
}

double checked_logit(const std::string& text)
{
    const double value = checked_number(text);
    if (std::isnan(value))
        throw unusable_argument("logit '" + text + "': one NaN makes every probability NaN");
    if (value == std::numeric_limits<double>::infinity())
        throw unusable_argument("logit '" + text + "': softmax has no value at +inf (-inf is an absent entry)");
    return value;
}

double checked_temperature(const std::string& text)
{
    const double value = checked_number(text);
    if (!(value / 2 > 0) || !std::isfinite(value * 2))
        throw unusable_argument("--temperature '" + text + "': T / 2, T and 2 T must be finite and greater than 0");
    return value;
}

arguments checked_arguments(const std::vector<std::string>& texts)
{
    arguments result;
    for (std::size_t i = 0; i < texts.size(); ++i) {
        const auto operand = [&] {
            if (i + 1 == texts.size() || texts[i + 1].empty())
                throw unusable_argument(texts[i] + " needs a value");
            return texts[++i];
        };
        if (texts[i] == "--help" || texts[i] == "-h")
            result.help = true;
        else if (texts[i] == "--temperature")
            result.temperature = checked_temperature(operand());
        else if (texts[i] == "--svg")
            result.svg = operand();
        else
            result.logits.push_back(checked_logit(texts[i]));
    }
    if (result.logits.empty())
        result.logits = {1.2, 3, 0.4, 2.1, -0.8, 1.6};
    if (std::all_of(result.logits.begin(), result.logits.end(), [](double x) { return std::isinf(x); }))
        throw unusable_argument("all logits are -inf: at least one entry must be there");
    return result;
}

// ---- Numbers as text

// rounded so that no zero has a sign
std::string decimals(double value, int digits)
{
    const double unit = std::pow(10.0, digits);
    char text[32];
    std::snprintf(text, sizeof text, "%.*f", digits, std::round(value * unit) / unit + 0.0);
    return text;
}

std::string significant(double value)
{
    char text[32];
    std::snprintf(text, sizeof text, "%.3g", value);
    return text;
}

// ---- What is shown

constexpr std::size_t most_entries = 12; // of a heat map that fits into 80 columns
constexpr std::size_t with_digits = 6;   // more entries: coarser numbers

struct panel {
    double temperature;
    std::vector<double> probs;    // [n]
    std::vector<double> jacobian; // [n * n]
};

struct picture {
    std::vector<std::string> labels; // [n]: the logits
    std::size_t label_width = 0;
    std::vector<panel> panels;
    std::vector<std::string> captions;
};

// Of a long row the most probable entries, then the sum of all others: with q = A p and A adding entries up,
// A J A^T = diag(q) - q q^T is the Jacobian of q.
picture picture_of(const std::vector<double>& logits, double temperature)
{
    std::vector<std::size_t> order(logits.size());
    std::iota(order.begin(), order.end(), std::size_t(0));
    std::size_t single = order.size();
    if (single > most_entries) {
        single = most_entries - 1;
        std::sort(order.begin(), order.end(),
                  [&](auto a, auto b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); });
        std::sort(order.begin(), order.begin() + most_entries - 1);
    }

    picture result;
    result.captions = {"p = softmax(x / T) and its Jacobian, J_ij = d p_i / d (x_j / T).",
                       "Row i of J: p_i rises with its own logit (diagonal) and falls with all others.",
                       "Rows sum to zero: the same added to all logits changes no probability."};
    for (std::size_t i = 0; i < single; ++i)
        result.labels.push_back(significant(logits[order[i]]));
    if (single < order.size()) {
        result.labels.emplace_back("rest");
        result.captions.push_back("Shown: the " + std::to_string(single) + " most probable of " +
                                  std::to_string(order.size()) + " logits; rest: the others, added up.");
    }
    for (const std::string& label : result.labels)
        result.label_width = std::max(result.label_width, label.size());

    for (const double factor : {0.5, 1.0, 2.0}) {
        std::vector<double> probs(logits.size());
        smx::softmax(logits, probs, {.temperature = factor * temperature});

        std::vector<double> shown(result.labels.size());
        for (std::size_t i = 0; i < order.size(); ++i)
            shown[std::min(i, shown.size() - 1)] += probs[order[i]];
        std::vector<double> jacobian(shown.size() * shown.size());
        smx::softmax_jacobian(shown, jacobian);
        result.panels.push_back({factor * temperature, shown, jacobian});
    }
    return result;
}

// ---- Colours

struct colour {
    int red, green, blue;
};

constexpr colour bar_colour{42, 157, 143};

// -1/4 blue, 0 light grey, 1/4 orange: no entry of J is larger
colour heat(double entry)
{
    const colour zero{230, 232, 235};
    const colour end = entry < 0 ? colour{40, 103, 178} : colour{205, 84, 10};
    const double t = std::min(std::abs(entry) * 4, 1.0);
    const auto mix = [t](int a, int b) { return static_cast<int>(std::lround(a + t * (b - a))); };
    return {mix(zero.red, end.red), mix(zero.green, end.green), mix(zero.blue, end.blue)};
}

colour text_on_heat(double entry) { return std::abs(entry) * 4 < 0.6 ? colour{50, 50, 50} : colour{255, 255, 255}; }

// ---- Terminal

bool colours_wanted()
{
    const char* const no_color = std::getenv("NO_COLOR");
    const char* const terminal = std::getenv("TERM");
    if ((no_color != nullptr && *no_color != '\0') || (terminal != nullptr && std::strcmp(terminal, "dumb") == 0))
        return false;
#if __has_include(<unistd.h>)
    return isatty(STDOUT_FILENO) != 0;
#else
    return false;
#endif
}

// in eighths of a character with colours, else in characters
std::string bar(double share, std::size_t width, bool colours)
{
    if (!colours) {
        const auto length = static_cast<std::size_t>(std::lround(share * static_cast<double>(width)));
        return std::string(length, '#') + std::string(width - length, ' ');
    }
    constexpr std::array eighths{"", "\u258f", "\u258e", "\u258d", "\u258c", "\u258b", "\u258a", "\u2589"};
    const auto length = static_cast<std::size_t>(std::lround(share * 8 * static_cast<double>(width)));
    std::string result = "\x1b[38;2;42;157;143m";
    for (std::size_t i = 0; i < length / 8; ++i)
        result += "\u2588";
    result += eighths[length % 8];
    result += "\x1b[0m";
    return result + std::string(width - (length + 7) / 8, ' ');
}

std::string on_heat(const std::string& text, double entry, bool colours)
{
    if (!colours)
        return text;
    const colour back = heat(entry);
    const colour front = text_on_heat(entry);
    char codes[64];
    std::snprintf(codes, sizeof codes, "\x1b[48;2;%d;%d;%d;38;2;%d;%d;%dm", back.red, back.green, back.blue, front.red,
                  front.green, front.blue);
    return codes + text + "\x1b[0m";
}

std::string right(const std::string& text, std::size_t width)
{
    return std::string(width - std::min(width, text.size()), ' ') + text;
}

void print(const picture& shown, bool colours)
{
    const std::size_t n = shown.labels.size();
    const bool digits = n <= with_digits;
    const std::size_t cell_width = digits ? 7 : 4;
    const std::size_t label_width = std::max<std::size_t>(shown.label_width, 5);
    const std::size_t used = label_width + 10 + n * cell_width;
    const std::size_t bar_width = std::clamp<std::size_t>(used < 79 ? 79 - used : 0, 8, 24);

    std::printf("%s\n\n", shown.captions[0].c_str());
    for (const panel& p : shown.panels) {
        std::printf("T = %s\n", significant(p.temperature).c_str());
        std::printf("%s      p  %s%s\n", right("x", label_width).c_str(), std::string(bar_width, ' ').c_str(),
                    digits ? "      J" : " 100 J");
        for (std::size_t i = 0; i < n; ++i) {
            std::printf("%s%7.3f  %s", right(shown.labels[i], label_width).c_str(), p.probs[i],
                        bar(p.probs[i], bar_width, colours).c_str());
            for (std::size_t j = 0; j < n; ++j) {
                const double entry = p.jacobian[i * n + j];
                const std::string number = digits ? decimals(entry, 3) : decimals(entry * 100, 0);
                const std::string text = colours ? right(number, cell_width - 1) + " " : right(number, cell_width);
                std::printf("%s", on_heat(text, entry, colours).c_str());
            }
            std::printf("\n");
        }
        std::printf("\n");
    }
    for (std::size_t line = 1; line < shown.captions.size(); ++line)
        std::printf("%s\n", shown.captions[line].c_str());
}

// ---- SVG, in hues that can be read on white and on black

std::string hexadecimal(colour c)
{
    char text[8];
    std::snprintf(text, sizeof text, "#%02x%02x%02x", c.red, c.green, c.blue);
    return text;
}

std::string svg_text(double x, double y, const std::string& attributes, std::string words)
{
    if (words.starts_with("-"))
        words.replace(0, 1, "&#8722;");
    return "<text x=\"" + decimals(x, 1) + "\" y=\"" + decimals(y, 1) + "\" " + attributes + ">" + words + "</text>\n";
}

std::string svg_rectangle(double x, double y, double width, double height, colour fill)
{
    return "<rect x=\"" + decimals(x, 1) + "\" y=\"" + decimals(y, 1) + "\" width=\"" + decimals(width, 1) +
           "\" height=\"" + decimals(height, 1) + "\" rx=\"2\" fill=\"" + hexadecimal(fill) + "\"/>\n";
}

// as short as a tile: .25, 0
std::string hundredths(double entry)
{
    std::string text = decimals(entry, 2);
    if (text == "0.00")
        return "0";
    return text.erase(text.find("0."), 1);
}

std::string svg_of(const picture& shown)
{
    constexpr double top = 44, bars = 100, heat_top = top + bars + 22, plot = 216, gap = 28;
    const std::string centred = "text-anchor=\"middle\" font-size=\"11\"";
    const std::size_t n = shown.labels.size();
    const double tile = std::min(plot / static_cast<double>(n), 72.0);
    const double left = 16 + 7 * static_cast<double>(shown.label_width);
    const double legend = left + 2 * (plot + gap);
    const double caption = heat_top + tile * static_cast<double>(n) + 36;
    const auto at = [tile](std::size_t i) { return tile * static_cast<double>(i); };
    double most_probable = 0;
    for (const panel& p : shown.panels)
        most_probable = std::max(most_probable, *std::max_element(p.probs.begin(), p.probs.end()));

    std::string out = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + decimals(legend + plot + 12, 0) +
                      " " + decimals(caption + 20 * static_cast<double>(shown.captions.size()) - 6, 0) +
                      "\" role=\"img\" font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"#7a7a7a\">\n"
                      "<title>softmax and its Jacobian at three temperatures</title>\n";
    for (std::size_t k = 0; k < shown.panels.size(); ++k) {
        const panel& p = shown.panels[k];
        const double x = left + static_cast<double>(k) * (plot + gap);
        out += svg_text(x, 18, "font-size=\"15\" font-weight=\"600\"", "T = " + significant(p.temperature));
        for (std::size_t i = 0; i < n; ++i) {
            const double middle = x + at(i) + tile / 2;
            const double height = std::max(p.probs[i] / most_probable * bars, 0.6);
            out += svg_rectangle(x + at(i) + 1, top + bars - height, tile - 2, height, bar_colour);
            if (n <= with_digits) {
                out += svg_text(middle, top + bars - height - 4, centred, decimals(p.probs[i], 2));
                out += svg_text(middle, top + bars + 15, centred, shown.labels[i]);
            }
            if (k == 0)
                out += svg_text(x - 8, heat_top + at(i) + tile / 2 + 4, "text-anchor=\"end\" font-size=\"11\"",
                                shown.labels[i]);
            for (std::size_t j = 0; j < n; ++j) {
                const double entry = p.jacobian[i * n + j];
                out += svg_rectangle(x + at(j) + 0.5, heat_top + at(i) + 0.5, tile - 1, tile - 1, heat(entry));
                if (n <= with_digits)
                    out += svg_text(x + at(j) + tile / 2, heat_top + at(i) + tile / 2 + 4,
                                    centred + " fill=\"" + hexadecimal(text_on_heat(entry)) + "\"", hundredths(entry));
            }
        }
    }
    for (std::size_t line = 0; line < shown.captions.size(); ++line)
        out += svg_text(left, caption + 20 * static_cast<double>(line), "", shown.captions[line]);
    for (int step = -4; step <= 4; ++step) {
        const double entry = step / 16.0;
        const double x = legend + 24 * (step + 4);
        out += svg_rectangle(x + 0.5, caption - 6, 23, 14, heat(entry));
        if (step % 4 == 0)
            out += svg_text(x + 12, caption + 24, centred, hundredths(entry));
    }
    return out + "</svg>\n";
}

void write(const std::string& path, const std::string& text)
{
    std::ofstream out(path, std::ios::binary);
    out << text << std::flush;
    if (const int reason = errno; !out)
        throw std::runtime_error("cannot write '" + path + "': " + std::strerror(reason));
}

} // namespace

int main(int argc, char** argv)
{
    try {
        const arguments options = checked_arguments({argv + 1, argv + argc});
        if (options.help) {
            std::printf("%s", help.data());
            return 0;
        }
        const picture shown = picture_of(options.logits, options.temperature);
        if (!options.svg.empty())
            write(options.svg, svg_of(shown));
        print(shown, colours_wanted());
        return 0;
    } catch (const unusable_argument& error) {
        std::fprintf(stderr, "demo: %s (demo --help)\n", error.what());
        return 2;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "demo: %s\n", error.what());
        return 2;
    }
}
