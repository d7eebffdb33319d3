"""Lipschitz control of neural networks in JAX: measure, regularize, constrain, certify."""

# Operators
from lipjax.operators.base import LinearOperator as LinearOperator
from lipjax.operators.convolution import Convolution as Convolution
from lipjax.operators.dense import Dense as Dense
from lipjax.operators.dense import ReshapedKernel as ReshapedKernel
from lipjax.operators.diagonal import Diagonal as Diagonal
from lipjax.operators.layouts import AmbiguousLeafError as AmbiguousLeafError
from lipjax.operators.layouts import equinox_layout as equinox_layout
from lipjax.operators.layouts import flax_layout as flax_layout
from lipjax.operators.layouts import haiku_layout as haiku_layout
from lipjax.operators.layouts import torch_layout as torch_layout
from lipjax.operators.pairs import lora_products as lora_products
from lipjax.operators.pairs import qk_products as qk_products
from lipjax.operators.per_operator import PerOperator as PerOperator
from lipjax.operators.product import Product as Product
from lipjax.operators.resolve import LayoutError as LayoutError
from lipjax.operators.describe import describe as describe

# Measure
from lipjax.measure.bounds import BoundMethod as BoundMethod
from lipjax.measure.bounds import Bounds as Bounds
from lipjax.measure.bounds import spectral_norm_bounds as spectral_norm_bounds
from lipjax.measure.frobenius import frobenius_norms as frobenius_norms
from lipjax.measure.norms import spectral_norms as spectral_norms
from lipjax.measure.operator_norm import operator_norm as operator_norm
from lipjax.measure.operator_norm_bounds import operator_norm_bounds as operator_norm_bounds
from lipjax.measure.power_iteration import power_iteration as power_iteration
from lipjax.measure.read import read_scalars as read_scalars
from lipjax.measure.read import read_singular_values as read_singular_values
from lipjax.measure.read import read_spectral_norms as read_spectral_norms
from lipjax.measure.singular_vectors import init_singular_vectors as init_singular_vectors
from lipjax.measure.singular_vectors import singular_triplets as singular_triplets
from lipjax.measure.singular_vectors import update_singular_vectors as update_singular_vectors
from lipjax.measure.stable_rank import stable_ranks as stable_ranks
from lipjax.measure.triplet import SingularTriplet as SingularTriplet
from lipjax.measure.vectors import SingularVectors as SingularVectors

# Regularize
from lipjax.regularize.gradient_penalties import gradient_penalty as gradient_penalty
from lipjax.regularize.gradient_penalties import wgan_gradient_penalty as wgan_gradient_penalty
from lipjax.regularize.l1_decay import L1DecayState as L1DecayState
from lipjax.regularize.l1_decay import add_l1_decay as add_l1_decay
from lipjax.regularize.loss_penalties import frobenius_penalty as frobenius_penalty
from lipjax.regularize.loss_penalties import l1_penalty as l1_penalty
from lipjax.regularize.loss_penalties import spectral_penalty as spectral_penalty
from lipjax.regularize.spectral_decay import SpectralDecayState as SpectralDecayState
from lipjax.regularize.spectral_decay import add_spectral_decay as add_spectral_decay

# Constrain
from lipjax.constrain.activations import group_sort as group_sort
from lipjax.constrain.activations import householder as householder
from lipjax.constrain.almost_orthogonal import almost_orthogonalize as almost_orthogonalize
from lipjax.constrain.muon import muon_dimension_numbers as muon_dimension_numbers
from lipjax.constrain.normalize import spectral_normalize as spectral_normalize
from lipjax.constrain.orthogonal_convolution import orthogonal_convolution as orthogonal_convolution
from lipjax.constrain.orthogonal_map import orthogonal_map as orthogonal_map
from lipjax.constrain.projections import clip_weights as clip_weights
from lipjax.constrain.projections import orthogonalize as orthogonalize
from lipjax.constrain.projections import project_frobenius_ball as project_frobenius_ball
from lipjax.constrain.projections import project_operator_norm_ball as project_operator_norm_ball
from lipjax.constrain.projections import project_spectral_ball as project_spectral_ball
from lipjax.constrain.residual_kernels import cpl_kernels as cpl_kernels
from lipjax.constrain.residual_kernels import sll_kernels as sll_kernels
from lipjax.constrain.sandwich import sandwich_kernels as sandwich_kernels
from lipjax.constrain.keep import KeepParamsState as KeepParamsState
from lipjax.constrain.keep_params import keep_params_in_box as keep_params_in_box
from lipjax.constrain.keep_params import (
  keep_params_in_frobenius_ball as keep_params_in_frobenius_ball,
)
from lipjax.constrain.keep_params import (
  keep_params_in_operator_norm_ball as keep_params_in_operator_norm_ball,
)
from lipjax.constrain.keep_params import keep_params_orthogonal as keep_params_orthogonal
from lipjax.constrain.spectral_ball import SpectralBallState as SpectralBallState
from lipjax.constrain.spectral_ball import (
  keep_params_in_spectral_ball as keep_params_in_spectral_ball,
)
from lipjax.constrain.clip_decay import add_clip_decay as add_clip_decay
from lipjax.constrain.qk_clip import qk_clip as qk_clip
from lipjax.constrain.sphere import keep_params_on_sphere as keep_params_on_sphere
from lipjax.constrain.sphere import project_sphere as project_sphere
from lipjax.constrain.tangent import keep_updates_tangent as keep_updates_tangent

# Certify
from lipjax.certify.errors import CertifyError as CertifyError
from lipjax.certify.explain import Explanation as Explanation
from lipjax.certify.explain import ExplanationStep as ExplanationStep
from lipjax.certify.explain import explain as explain
from lipjax.certify.lipschitz import lipschitz_bounds as lipschitz_bounds
from lipjax.certify.lipschitz import lipschitz_upper_bound as lipschitz_upper_bound
from lipjax.certify.lower.bound import lipschitz_lower_bound as lipschitz_lower_bound
from lipjax.certify.carried import CarriedBounds as CarriedBounds
from lipjax.certify.carried import carried_margin_upper_bounds as carried_margin_upper_bounds
from lipjax.certify.local_radius import local_certified_radius as local_certified_radius
from lipjax.certify.margins import certified_accuracy as certified_accuracy
from lipjax.certify.margins import certified_radius as certified_radius
from lipjax.certify.pairs import margin_upper_bounds as margin_upper_bounds
from lipjax.certify.register import linear_node as linear_node
from lipjax.certify.register import lipschitz_node as lipschitz_node
from lipjax.certify.register import register_rule as register_rule
from lipjax.certify.register import scalar_node as scalar_node
from lipjax.operators.trace.layout import trace_layout as trace_layout
