// Small files of the system, and environment variables. Not by streams of the standard library: linked statically, as in a wheel, these are
// more than a tenth of a megabyte. Not for files that are compiled once per instruction set.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace ost {

// The lines of a file without their ends; none if it cannot be read.
inline std::vector<std::string> lines_of(const std::string& path) {
  std::vector<std::string> lines(1);
  std::FILE* file = std::fopen(path.c_str(), "re");
  if (!file) return {};
  for (int c; (c = std::fgetc(file)) != EOF;) {
    if (c == '\n')
      lines.emplace_back();
    else
      lines.back() += char(c);
  }
  std::fclose(file);
  if (lines.back().empty()) lines.pop_back();
  return lines;
}

// Null if it is not set, or empty, as shells and containers leave a variable that has no value.
inline const char* environment(const char* name) {
  const char* text = std::getenv(name);
  return text && *text ? text : nullptr;
}

}  // namespace ost
