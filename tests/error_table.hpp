// SPDX-License-Identifier: BSL-1.0
// error_table.hpp: the bounds of an output, and the largest errors of a program, printed with SMX_TABLE=1 when it ends.
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

struct bound {
    const char* output;
    double natural, adversarial;
};

enum class rows_are { natural, adversarial };

inline std::string figure(double error)
{
    char text[32] = {};
    if (error >= 0) // else none
        std::snprintf(text, sizeof text, error < 1e6 ? "%.3f" : "%.3g", error);
    return text;
}

// The largest errors of this process, printed when it ends.
struct table_line {
    double natural = -1, adversarial = -1;
    bound limits;
};

class error_table {
public:
    ~error_table()
    {
        const char* wanted = std::getenv("SMX_TABLE");
        if (wanted == nullptr || std::strcmp(wanted, "1") != 0 || lines_.empty())
            return;
        std::printf("\n| output | type | leaf | natural rows | bound | adversarial rows | bound "
                    "|\n|---|---|---|---|---|---|---|\n");
        for (const auto& [key, line] : lines_)
            std::printf("| %s | %s | %s | %s | %g | %s | %g |\n", line.limits.output, key[1].c_str(), key[2].c_str(),
                        figure(line.natural).c_str(), line.limits.natural, figure(line.adversarial).c_str(),
                        line.limits.adversarial);
    }

    void note(const bound& limits, const char* type, const char* leaf_name, rows_are which, double error)
    {
        table_line& line = lines_[{limits.output, type, leaf_name}];
        line.limits = limits;
        double& largest = which == rows_are::natural ? line.natural : line.adversarial;
        largest = std::max(largest, error);
    }

private:
    std::map<std::vector<std::string>, table_line> lines_;
};

inline error_table all_errors; // NOLINT: prints in its destructor
