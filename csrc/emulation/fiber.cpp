#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "sanitizer.h"

#ifndef MEDNEXT_OPS_EMULATION_PORTABLE_SWITCH
// Saves what the ABI asks a function to preserve on the current stack, leaves the stack pointer in *from, and goes on
// where the stack `to` was left. Floating-point control is the thread's: no kernel changes it.
extern "C" void mednext_ops_emulation_switch(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.globl mednext_ops_emulation_switch
.hidden mednext_ops_emulation_switch
.type mednext_ops_emulation_switch, @function
mednext_ops_emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size mednext_ops_emulation_switch, . - mednext_ops_emulation_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.globl mednext_ops_emulation_switch
.hidden mednext_ops_emulation_switch
.type mednext_ops_emulation_switch, %function
mednext_ops_emulation_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size mednext_ops_emulation_switch, . - mednext_ops_emulation_switch
)");
#endif
#endif

namespace mednext_ops::emulation {
namespace {

// Kernels keep a few KiB of arrays on their stacks; instrumented code takes several times as much.
constexpr std::size_t kOffsets = 29;
constexpr std::size_t kOffsetBytes = 9 * 64;
constexpr std::size_t kStackBytes = kAddressSanitizer ? 512 * 1024 : 128 * 1024;

// Stacks are kept for the next launch: a block takes hundreds of them. Each ends in a page that may not be touched.
class StackPool {
  public:
    std::byte* take() {
        {
            const std::lock_guard lock(mutex_);
            if (!free_.empty()) {
                std::byte* stack = free_.back();
                free_.pop_back();
                return stack;
            }
        }
        const auto guard = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        void* pages = mmap(nullptr, guard + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pages == MAP_FAILED || mprotect(pages, guard, PROT_NONE) != 0) throw std::bad_alloc();
        return static_cast<std::byte*>(pages) + guard;
    }

    void give_back(std::byte* stack) {
        allow(stack, kStackBytes);  // an abandoned fiber leaves its frames' red zones behind
        const std::lock_guard lock(mutex_);
        free_.push_back(stack);
    }

  private:
    std::mutex mutex_;
    std::vector<std::byte*> free_;
};

StackPool& stack_pool() {
    static auto* pool = new StackPool;  // outlives every thread
    return *pool;
}

thread_local Fiber* starting = nullptr;

}  // namespace

Fiber::Fiber() : stack_(stack_pool().take()) {}

Fiber::~Fiber() {
    stack_pool().give_back(stack_);
}

void Fiber::start(Entry entry, void* argument) {
    entry_ = entry;
    argument_ = argument;
    sanitizer_state_ = nullptr;
    allow(stack_, kStackBytes);
#ifdef MEDNEXT_OPS_EMULATION_PORTABLE_SWITCH
    getcontext(&own_);
    own_.uc_stack.ss_sp = stack_;
    own_.uc_stack.ss_size = kStackBytes;
    own_.uc_link = nullptr;
    makecontext(&own_, reinterpret_cast<void (*)()>(&Fiber::enter), 0);
#else
    // Stacks begin at pages: without an offset of its own each fiber's frames would share the same few cache sets.
    const std::size_t offset = reinterpret_cast<std::uintptr_t>(stack_) / kStackBytes % kOffsets * kOffsetBytes;
    auto* top = reinterpret_cast<std::uintptr_t*>(stack_ + kStackBytes - offset);
    const auto entrance = reinterpret_cast<std::uintptr_t>(&Fiber::enter);
#if defined(__x86_64__)
    *--top = 0;  // where enter() would return to: the end of every backtrace
    *--top = entrance;
    for (int i = 0; i < 6; ++i) *--top = 0;
#else
    for (int i = 0; i < 20; ++i) *--top = 0;
    top[11] = entrance;  // x30
#endif
    own_ = top;
#endif
}

void Fiber::resume() {
    starting = this;
    void* state = nullptr;
    before_switch(&state, stack_, kStackBytes);
#ifdef MEDNEXT_OPS_EMULATION_PORTABLE_SWITCH
    swapcontext(&caller_, &own_);
#else
    mednext_ops_emulation_switch(&caller_, own_);
#endif
    after_switch(state, nullptr, nullptr);
}

void Fiber::suspend() {
    leave(false);
}

void Fiber::leave(bool forever) {
    before_switch(forever ? nullptr : &sanitizer_state_, caller_stack_, caller_stack_bytes_);
#ifdef MEDNEXT_OPS_EMULATION_PORTABLE_SWITCH
    swapcontext(&own_, &caller_);
#else
    mednext_ops_emulation_switch(&own_, caller_);
#endif
    after_switch(sanitizer_state_, &caller_stack_, &caller_stack_bytes_);
}

void Fiber::enter() {
    Fiber& self = *starting;
    after_switch(nullptr, &self.caller_stack_, &self.caller_stack_bytes_);
    self.entry_(self.argument_);
    self.leave(true);
    std::abort();  // nobody resumes a fiber that returned
}

}  // namespace mednext_ops::emulation
