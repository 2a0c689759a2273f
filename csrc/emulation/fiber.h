// A fiber: a function with a stack of its own that runs, when it is resumed, until it suspends itself.
//
// A fiber stays on the operating system's thread that resumed it first. AddressSanitizer is told of every switch.
#pragma once

#include <cstddef>

#if defined(MEDNEXT_OPS_EMULATION_UCONTEXT) || !(defined(__x86_64__) || defined(__aarch64__))
#define MEDNEXT_OPS_EMULATION_PORTABLE_SWITCH
#include <ucontext.h>
#endif

namespace mednext_ops::emulation {

class Fiber {
  public:
    using Entry = void (*)(void* argument);

    Fiber();
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // The next resume() calls `entry` on a fresh stack; whatever the fiber did before is abandoned, not unwound.
    void start(Entry entry, void* argument);

    // Runs the fiber until it suspends itself or its entry returns.
    void resume();

    // Called inside the fiber: goes back to resume().
    void suspend();

  private:
    [[noreturn]] static void enter();
    void leave(bool forever);

    std::byte* stack_;  // lowest address
    Entry entry_ = nullptr;
    void* argument_ = nullptr;
#ifdef MEDNEXT_OPS_EMULATION_PORTABLE_SWITCH
    ucontext_t own_{};
    ucontext_t caller_{};
#else
    void* own_ = nullptr;  // stack pointers: all else is on the stacks
    void* caller_ = nullptr;
#endif
    // What AddressSanitizer wants to know again after a switch.
    void* sanitizer_state_ = nullptr;
    const void* caller_stack_ = nullptr;
    std::size_t caller_stack_bytes_ = 0;
};

}  // namespace mednext_ops::emulation
