// Sentences from words and numbers, without streams: those need a C++ runtime that is initialised once in a process,
// which a library that brings one of its own, linked statically, does not see to.
#pragma once

#include <string>
#include <type_traits>

namespace mednext_ops::bindings {

template <typename Part>
void append(std::string& text, const Part& part) {
    if constexpr (std::is_arithmetic_v<Part> && !std::is_same_v<Part, char>) {
        text += std::to_string(part);
    } else {
        text += part;
    }
}

template <typename... Parts>
std::string text_of(const Parts&... parts) {
    std::string text;
    (append(text, parts), ...);
    return text;
}

}  // namespace mednext_ops::bindings
