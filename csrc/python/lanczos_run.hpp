// One block Lanczos run as Python sees it, whatever machine it runs on.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "core/energies.hpp"
#include "linalg/side_by_side.hpp"
#include "python/factors.hpp"
#include "python/gil.hpp"
#include "python/whole_class.hpp"

namespace mpfast::python {

namespace py = pybind11;

template <class T>
py::array_t<T> to_array(const std::vector<T>& values, std::vector<py::ssize_t> shape) {
  return py::array_t<T>(std::move(shape), values.data());
}

// A matrix or an operator, and the state between calls.
class Run {
 public:
  virtual ~Run() = default;
  virtual void advance(index_t steps) = 0;
  // Of a part: a run beside others, with a Krylov space of its own.
  virtual std::shared_ptr<const linalg::RitzValues> ritz(index_t steps, index_t part, index_t count) = 0;
  virtual py::array ritz_vectors(index_t count, index_t part) = 0;
  // T of a part without what rounding has left outside of its band, and the residual of one of its values.
  virtual linalg::SymmetricBand band(index_t part) = 0;
  virtual double residual_near(double theta, index_t part) = 0;
  // Steps that each has taken, and whether its space has closed.
  virtual std::vector<std::pair<index_t, bool>> parts() const = 0;
  virtual index_t steps() const = 0;
  virtual index_t width() const = 0;
  virtual bool exhausted() const = 0;
  virtual index_t zero_coordinates() const = 0;
  virtual linalg::OperatorStats stats() const = 0;
  // Those of the matrix, as scaled; null where they were not asked for, or before the first pass.
  virtual const Energies* energies() const { return nullptr; }

  // Keeps what the run reads alive. (py::keep_alive would do, but it also runs where the arguments were of wrong
  // types.)
  void hold(Reference owner) { owner_ = std::move(owner); }

 private:
  Reference owner_;
};

// The coefficients of the leading `count` Ritz vectors in the basis.
inline ConstSmallView leading_vectors(const linalg::RitzValues& ritz, index_t count) {
  if (count < 1 || count > ritz.size()) throw std::invalid_argument("count must be between 1 and the basis size");
  return ritz.vectors.columns(0, count);
}

template <class Backend>
std::vector<std::pair<index_t, bool>> parts_of(const linalg::SideBySide<Backend>& runs) {
  std::vector<std::pair<index_t, bool>> out;
  for (index_t i = 0; i < runs.parts(); ++i) out.emplace_back(runs.part(i).steps(), runs.part(i).exhausted());
  return out;
}

// Steps that a part has taken.
inline index_t steps_of(const Run& run, index_t part) {
  const auto parts = run.parts();
  if (part < 0 || part >= std::ssize(parts)) throw std::invalid_argument("the run has no such part");
  return parts[static_cast<std::size_t>(part)].first;
}

inline py::tuple ritz_tuple(Run& run, std::optional<index_t> steps, index_t part, std::optional<index_t> count) {
  const index_t taken = steps_of(run, part);
  if (count.value_or(1) < 1) throw std::invalid_argument("count must be at least 1");
  const auto r = run.ritz(steps.value_or(taken), part, count.value_or(std::numeric_limits<index_t>::max()));
  // Weights go out as (width, size): one row per probe.
  return py::make_tuple(to_array(r->theta, {r->size()}), to_array(r->residual, {r->size()}),
                        py::array_t<double>({r->width(), r->size()}, r->weight.data()));
}

// Precision of single Ritz values, relative: finer than any distance that is asked of them.
constexpr double kGlimpse = 1e-9;

inline py::array_t<double> glimpse_values(Run& run, const std::vector<index_t>& numbers, index_t part) {
  steps_of(run, part);
  std::vector<double> out;
  {
    const InCore core;
    const linalg::SymmetricBand band = run.band(part);
    for (const index_t number : numbers) {
      if (number < 0 || number >= band.order) throw std::invalid_argument("the run has no Ritz value of that number");
    }
    out = linalg::eigenvalues(band, numbers, kGlimpse);
  }
  return to_array(out, {std::ssize(out)});
}

inline index_t glimpse_count(Run& run, double theta, index_t part) {
  steps_of(run, part);
  const InCore core;
  return linalg::eigenvalues_above(run.band(part), {&theta, 1}).front();
}

inline double glimpse_residual(Run& run, double theta, index_t part) {
  steps_of(run, part);
  const InCore core;
  return run.residual_near(theta, part);
}

// Every module has its own Python class of this name.
inline void register_run(py::module_& m) {
  whole_class<Run>(m, "LanczosRun", py::module_local(),
                   "A block Lanczos run on the Gram operator of the short side of a matrix.")
      .def("advance", &Run::advance, py::arg("steps"))
      .def("ritz", &ritz_tuple, py::arg("steps") = py::none(), py::arg("part") = 0, py::arg("count") = py::none(),
           "Ritz values (descending), residuals and probe weights (width, size) of a part after `steps` steps: all, or "
           "at least the leading `count`.")
      .def(
          "ritz_vectors",
          [](Run& run, index_t count, index_t part) {
            steps_of(run, part);
            return run.ritz_vectors(count, part);
          },
          py::arg("count"), py::arg("part") = 0, "Leading Ritz vectors of a part, (count, dim).")
      .def("values_at", &glimpse_values, py::arg("numbers"), py::arg("part") = 0,
           "Ritz values by their numbers, 0 for the largest, to about nine digits.")
      .def("values_above", &glimpse_count, py::arg("theta"), py::arg("part") = 0, "How many Ritz values exceed theta.")
      .def("residual_near", &glimpse_residual, py::arg("theta"), py::arg("part") = 0,
           "Residual of the Ritz pair next to theta.")
      .def_property_readonly("parts", &Run::parts)
      .def_property_readonly("steps", &Run::steps)
      .def_property_readonly("width", &Run::width)
      .def_property_readonly("exhausted", &Run::exhausted)
      .def_property_readonly("zero_coordinates", &Run::zero_coordinates)
      .def_property_readonly("energies", [](const Run& run) { return energies_tuple(run.energies()); })
      .def_property_readonly("stats", [](const Run& run) {
        const linalg::OperatorStats s = run.stats();
        return py::make_tuple(s.trace, s.nonfinite_count, s.first_nonfinite_row, s.first_nonfinite_col);
      });
}

}  // namespace mpfast::python
