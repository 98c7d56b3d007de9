// The way out of Python into the core and back: who holds the GIL, how Ctrl-C arrives, and what becomes of a thread
// that is still in the core when the interpreter ends.
//
// A daemon thread may be in the core at that moment. When it then asks for the GIL, Python 3.11 to 3.13 ends it by
// pthread_exit, which unwinds its stack. Nothing here can be unwound so: destructors would drop references without the
// GIL, and one that asks for the GIL itself ends the process. So such a thread rests until the process is gone, which
// is what Python itself does with it from 3.14 on.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "core/abandonable.hpp"
#include "core/forced_unwind.hpp"
#include "core/fork.hpp"

namespace mpfast::python {

[[noreturn]] inline void rest() {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

// Runs `body`, which asks for the GIL or runs Python code, as NumPy's conversions do, and has nothing to destroy. What
// the caller has is not destroyed either.
template <class Body>
auto or_rest(const Body& body) {
  try {
    return body();
  } catch (const ForcedUnwind&) {
    rest();
  }
}

inline bool interpreter_is_ending() {
#if PY_VERSION_HEX >= 0x030d0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

// Signals are handled by the main thread alone. Who that is, is asked once: to ask Python is to run Python code, and a
// thread may be ended there.
inline std::atomic<unsigned long> main_thread{0};

inline bool in_main_thread() { return PyThread_get_thread_ident() == main_thread; }

// To be called once, when the module is loaded. A forked child has the thread that forked as its main one.
inline void find_main_thread() {
  main_thread = pybind11::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();
  at_fork(nullptr, nullptr, [] { main_thread = PyThread_get_thread_ident(); });
}

// A reference to an object of the caller's. When the last one goes, Python code of the caller's may run.
class Reference {
 public:
  Reference() = default;
  Reference(pybind11::object object) : object_(std::move(object)) {}
  ~Reference() {
    or_rest([this] { object_.release().dec_ref(); });
  }
  Reference(const Reference&) = default;
  Reference(Reference&&) = default;
  Reference& operator=(const Reference&) = default;
  Reference& operator=(Reference&&) = default;

  const pybind11::object& object() const { return object_; }

 private:
  pybind11::object object_;
};

// While it lives the GIL is released and the calling thread is in the core. To be created by a binding once it has
// looked at its arguments.
class InCore {
 public:
  InCore() : in_main_thread_(in_main_thread()), state_(PyEval_SaveThread()) { begin_call(); }
  ~InCore() {
    end_call();
    if (!in_main_thread_ && interpreter_is_ending()) rest();
    or_rest([this] { PyEval_RestoreThread(state_); });
  }
  InCore(const InCore&) = delete;
  InCore& operator=(const InCore&) = delete;

  // Lets Ctrl-C cancel the call. Other threads than the main one hear nothing of signals, and never ask for the GIL.
  Poll poll() const {
    if (!in_main_thread_) return {};
    return [] {
      if (interpreter_is_ending()) return;
      const pybind11::gil_scoped_acquire gil;
      if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
    };
  }

 private:
  bool in_main_thread_;
  PyThreadState* state_;
};

// The opposite, for a call back into Python: while it lives the GIL is held and the thread is not in the core.
class InPython {
 public:
  InPython() {
    end_call();
    or_rest([this] { gil_.emplace(); });
  }
  ~InPython() {
    gil_.reset();
    begin_call();
  }
  InPython(const InPython&) = delete;
  InPython& operator=(const InPython&) = delete;

 private:
  std::optional<pybind11::gil_scoped_acquire> gil_;
};

}  // namespace mpfast::python
