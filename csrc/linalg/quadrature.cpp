#include "linalg/quadrature.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

namespace mpfast::linalg {

namespace {

struct Rule {
  std::vector<double> nodes;
  std::vector<double> weights;
};

// Jacobi coefficients of a discrete measure: `diagonal` (count) and `coupling` (count - 1, then the norm left over).
struct Jacobi {
  std::vector<double> diagonal;
  std::vector<double> coupling;
};

// Coefficients of the lower bidiagonal factor of a Jacobi matrix.
struct Bidiagonal {
  std::vector<double> alpha;
  std::vector<double> beta;
};

double dot(const std::vector<double>& x, const std::vector<double>& y) {
  return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
}

// Lanczos on diag(nodes) from sqrt(weights), fully reorthogonalised: the coefficients whose Gauss rules match the
// moments of the measure. Stops early when the measure has no more points.
Jacobi jacobi_of(const Rule& rule, index_t count) {
  const std::size_t size = rule.nodes.size();
  const double mass = std::accumulate(rule.weights.begin(), rule.weights.end(), 0.0);
  std::vector<std::vector<double>> basis;
  std::vector<double> q(size);
  for (std::size_t i = 0; i < size; ++i) q[i] = std::sqrt(rule.weights[i] / mass);
  Jacobi out;
  const double scale = *std::max_element(rule.nodes.begin(), rule.nodes.end());
  for (index_t step = 0; step < count; ++step) {
    basis.push_back(q);
    for (std::size_t i = 0; i < size; ++i) q[i] *= rule.nodes[i];
    out.diagonal.push_back(dot(basis.back(), q));
    for (int pass = 0; pass < 2; ++pass) {
      for (const auto& v : basis) {
        const double c = dot(v, q);
        for (std::size_t i = 0; i < size; ++i) q[i] -= c * v[i];
      }
    }
    const double norm = std::sqrt(dot(q, q));
    if (!(norm > 1e-13 * scale)) break;
    out.coupling.push_back(norm);
    for (double& x : q) x /= norm;
  }
  return out;
}

Bidiagonal bidiagonal_of(const Jacobi& jacobi) {
  Bidiagonal out;
  out.alpha.push_back(std::sqrt(std::max(jacobi.diagonal[0], 0.0)));
  for (std::size_t i = 0; i + 1 < jacobi.diagonal.size(); ++i) {
    if (!(out.alpha.back() > 0)) break;
    const double beta = jacobi.coupling[i] / out.alpha.back();
    const double squared = jacobi.diagonal[i + 1] - beta * beta;
    if (!(squared > 0)) break;
    out.beta.push_back(beta);
    out.alpha.push_back(std::sqrt(squared));
  }
  return out;
}

// The values that alpha and beta settle at, freed of the drift of a finite noise matrix.
std::pair<double, double> settled(const Bidiagonal& b, index_t dim, index_t long_dim) {
  double alpha = 0;
  double beta = 0;
  for (std::size_t i = 1; i < b.alpha.size(); ++i) {
    alpha += b.alpha[i] * b.alpha[i] / (1 - static_cast<double>(i) / static_cast<double>(long_dim));
  }
  for (std::size_t i = 1; i < b.beta.size(); ++i) {
    beta += b.beta[i] * b.beta[i] / (1 - static_cast<double>(i + 1) / static_cast<double>(dim));
  }
  alpha = std::sqrt(alpha / static_cast<double>(b.alpha.size() - 1));
  beta = std::sqrt(beta / static_cast<double>(b.beta.size() - 1));
  return {alpha, std::min(alpha, beta)};
}

// Eigenvalues and squared first components of a symmetric tridiagonal matrix (Golub-Welsch: implicit QL that carries
// only the first row of the eigenvector matrix). O(n^2).
Rule gauss_rule(std::vector<double> diagonal, std::vector<double> coupling) {
  const auto n = static_cast<std::ptrdiff_t>(diagonal.size());
  std::vector<double>& d = diagonal;
  std::vector<double>& e = coupling;
  e.resize(diagonal.size(), 0.0);
  std::vector<double> first(diagonal.size(), 0.0);
  first[0] = 1;
  constexpr double kEps = std::numeric_limits<double>::epsilon();
  for (std::ptrdiff_t l = 0; l < n; ++l) {
    for (int iteration = 0;; ++iteration) {
      std::ptrdiff_t m = l;
      while (m + 1 < n && std::abs(e[m]) > kEps * (std::abs(d[m]) + std::abs(d[m + 1]))) ++m;
      if (m == l) break;
      if (iteration == 60) throw std::runtime_error("the quadrature's eigenvalue iteration did not converge");
      double g = (d[l + 1] - d[l]) / (2 * e[l]);
      g = d[m] - d[l] + e[l] / (g + std::copysign(std::hypot(g, 1.0), g));
      double s = 1;
      double c = 1;
      double p = 0;
      std::ptrdiff_t i = m - 1;
      for (; i >= l; --i) {
        const double f = s * e[i];
        const double b = c * e[i];
        const double r = std::sqrt(f * f + g * g);
        e[i + 1] = r;
        if (r == 0) {
          d[i + 1] -= p;
          e[m] = 0;
          break;
        }
        s = f / r;
        c = g / r;
        g = d[i + 1] - p;
        const double t = (d[i] - g) * s + 2 * c * b;
        p = s * t;
        d[i + 1] = g + p;
        g = c * t - b;
        const double z = first[i + 1];
        first[i + 1] = s * first[i] + c * z;
        first[i] = c * first[i] - s * z;
      }
      if (i >= l) continue;
      d[l] -= p;
      e[l] = g;
      e[m] = 0;
    }
  }
  const auto finite = [](double value) { return std::isfinite(value); };
  if (!std::all_of(d.begin(), d.end(), finite)) {
    throw std::runtime_error("the quadrature's eigenvalues are not finite");
  }
  std::vector<std::size_t> order(diagonal.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return d[a] > d[b]; });
  Rule rule;
  for (const std::size_t i : order) {
    rule.nodes.push_back(std::max(d[i], 0.0));
    rule.weights.push_back(first[i] * first[i]);
  }
  return rule;
}

Rule rule_of(Bidiagonal b, double alpha, double beta, index_t extension) {
  b.alpha.insert(b.alpha.end(), static_cast<std::size_t>(extension), alpha);
  b.beta.insert(b.beta.end(), static_cast<std::size_t>(extension), beta);
  std::vector<double> diagonal(b.alpha.size());
  std::vector<double> coupling(b.alpha.size() - 1);
  for (std::size_t i = 0; i < diagonal.size(); ++i) {
    diagonal[i] = b.alpha[i] * b.alpha[i] + (i > 0 ? b.beta[i - 1] * b.beta[i - 1] : 0.0);
    if (i + 1 < diagonal.size()) coupling[i] = b.alpha[i] * b.beta[i];
  }
  return gauss_rule(std::move(diagonal), std::move(coupling));
}

// The part of all blocks below the converged prefix, as one measure: mean over the probes that are not dropped.
Rule unresolved(std::span<const BlockRule> blocks, index_t prefix, index_t dropped) {
  Rule rule;
  index_t first_probe = 0;
  for (const BlockRule& block : blocks) {
    for (index_t i = prefix; i < block.weight.rows(); ++i) {
      double sum = 0;
      for (index_t c = 0; c < block.weight.cols(); ++c) {
        if (first_probe + c != dropped) sum += block.weight(i, c);
      }
      rule.nodes.push_back(block.theta[i]);
      rule.weights.push_back(sum);
    }
    first_probe += block.weight.cols();
  }
  return rule;
}

bool is_empty(const Rule& rule) {
  return std::none_of(rule.weights.begin(), rule.weights.end(), [](double w) { return w > 0; });
}

// The part of the trace that Ritz values may miss by rounding alone.
constexpr double kTraceRounding = 1e-4;

// The measure of a run whose space has closed on eigenvalues that occur more often than a block sees them. The weights
// say how often, to within the noise of the probes, and are tilted a little so that the first moment is the exact one.
SpectralMeasure closed_measure(std::span<const BlockRule> blocks, const QuadratureOptions& options) {
  const Rule all = unresolved(blocks, 0, options.dropped_probe);
  const double mass = std::accumulate(all.weights.begin(), all.weights.end(), 0.0);
  const double mean = dot(all.nodes, all.weights) / mass;
  double variance = 0;
  for (std::size_t i = 0; i < all.nodes.size(); ++i) {
    variance += all.weights[i] / mass * (all.nodes[i] - mean) * (all.nodes[i] - mean);
  }
  const double missing = options.exact_trace ? options.trace / static_cast<double>(options.dim) - mean : 0.0;
  const double slope = variance > 0 ? missing / variance : 0.0;
  std::vector<std::size_t> order(all.nodes.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return all.nodes[a] > all.nodes[b]; });
  // A tilt that would leave a node less than nothing is no small one.
  const bool small =
      1 + slope * (all.nodes[order.front()] - mean) > 0 && 1 + slope * (all.nodes[order.back()] - mean) > 0;
  SpectralMeasure out;
  for (const std::size_t i : order) {
    out.nodes.push_back(all.nodes[i]);
    out.weights.push_back(all.weights[i] / mass * (small ? 1 + slope * (all.nodes[i] - mean) : 1.0));
  }
  out.support_edge = out.nodes.front();
  return out;
}

// About 0.6 k. The last coefficients of a run are not used, because its finite length distorts them.
index_t coefficient_count(std::span<const BlockRule> blocks) {
  index_t steps = std::numeric_limits<index_t>::max();
  for (const BlockRule& block : blocks) steps = std::min(steps, block.steps);
  const index_t wanted = (3 * steps) / 5;
  return std::clamp<index_t>(wanted, 3, steps >= 24 ? 20 : 10);
}

}  // namespace

index_t converged_prefix(std::span<const BlockRule> blocks, double converged) {
  index_t prefix = std::numeric_limits<index_t>::max();
  for (const BlockRule& block : blocks) {
    const index_t size = std::ssize(block.theta);
    index_t count = 0;
    while (count < size && block.residual[count] < converged * block.theta[count]) ++count;
    const index_t limit = block.complete ? size : std::max<index_t>(size - 3 * block.weight.cols(), 0);
    prefix = std::min({prefix, count, limit});
  }
  return prefix;
}

index_t single_prefix(std::span<const BlockRule> blocks, index_t prefix, index_t dim) {
  constexpr double kSurprise = 14;     // minus the logarithm of the chance that single ones look like several: 1e-6
  constexpr double kRounding = 1e-12;  // of the largest: Ritz values that small share one eigenvalue, zero
  const Rule all = unresolved(blocks, 0, -1);
  const double unit = std::accumulate(all.weights.begin(), all.weights.end(), 0.0) / static_cast<double>(dim);
  index_t probes = 0;
  for (const BlockRule& block : blocks) probes += block.weight.cols();
  double mass = 0;
  for (index_t i = 0; i < prefix && blocks[0].theta[i] > kRounding * blocks[0].theta[0]; ++i) {
    for (const BlockRule& block : blocks) {
      for (index_t c = 0; c < block.weight.cols(); ++c) mass += block.weight(i, c);
    }
    // Laurent and Massart (2000): the upper tail of a chi-squared variable.
    const auto freedom = static_cast<double>((i + 1) * probes);
    const double surprising = freedom + 2 * std::sqrt(freedom * kSurprise) + 2 * kSurprise;
    if (mass * static_cast<double>(probes) > unit * surprising) return i;
  }
  return prefix;
}

SpectralMeasure spectral_measure(std::span<const BlockRule> blocks, const QuadratureOptions& options) {
  if (blocks.empty()) throw std::invalid_argument("spectral_measure() needs at least one block");
  index_t prefix = converged_prefix(blocks, options.converged);
  if (!is_empty(unresolved(blocks, prefix, options.dropped_probe))) prefix = single_prefix(blocks, prefix, options.dim);
  const auto dim = static_cast<double>(options.dim);
  SpectralMeasure out;
  out.atoms = prefix;
  double resolved = 0;
  for (index_t i = 0; i < prefix; ++i) {
    const double theta = blocks[0].theta[i];
    out.nodes.push_back(theta);
    out.weights.push_back(1 / dim);
    resolved += theta;
  }

  Rule rest = unresolved(blocks, prefix, options.dropped_probe);
  if (is_empty(rest)) {
    const bool repeated = options.trace - resolved > kTraceRounding * options.trace;
    if (repeated && !is_empty(unresolved(blocks, 0, options.dropped_probe))) return closed_measure(blocks, options);
    rest = {{0.0}, {1.0}};  // everything is resolved: what is left of W is zero
  }
  const Bidiagonal coefficients = bidiagonal_of(jacobi_of(rest, coefficient_count(blocks) + 1));
  Rule rule;
  if (coefficients.beta.size() >= 3) {
    const auto [alpha, beta] = settled(coefficients, options.dim, options.long_dim);
    out.support_edge = (alpha + beta) * (alpha + beta);
    rule = rule_of(coefficients, alpha, beta, options.extension);
  } else {
    // A measure of a few points: nothing to continue.
    rule = rule_of(coefficients, 0, 0, 0);
    out.support_edge = rule.nodes.front();
  }
  const double mass = std::accumulate(rule.weights.begin(), rule.weights.end(), 0.0);
  const double mean = dot(rule.nodes, rule.weights) / mass;
  const double share = (dim - static_cast<double>(prefix)) / dim;
  const double wanted = std::max(options.trace - resolved, 0.0) / (dim - static_cast<double>(prefix));
  const double scale = options.exact_trace && mean > 0 ? wanted / mean : 1.0;
  for (std::size_t i = 0; i < rule.nodes.size(); ++i) {
    out.nodes.push_back(rule.nodes[i] * scale);
    out.weights.push_back(rule.weights[i] / mass * share);
  }
  return out;
}

}  // namespace mpfast::linalg
