// SPDX-License-Identifier: BSL-1.0
// smx.hpp: softmax, its Jacobian and what follows from them: all public headers.
#pragma once

#include <smx/batch.hpp>         // softmax_rows, softmax_columns, softmax_segments; the products row by row
#include <smx/cross_entropy.hpp> // cross_entropy, entropy, kl_divergence and gradients
#include <smx/jacobian.hpp>      // softmax_jacobian, softmax_jvp, softmax_vjp, softmax_hvp; the same for log_softmax
#include <smx/jacobian_view.hpp> // jacobian_view: the Jacobian as an operator: solves, factors, eigenvalues
#include <smx/row.hpp>           // scalar, readable_row, writable_row
#include <smx/softmax.hpp>       // softmax, log_softmax, logsumexp, logaddexp
