"""AdamW with a warm-up and a cosine, one floor for the generator and one for the discriminator."""

import jax
import optax

global_norm = optax.global_norm
apply_updates = optax.apply_updates


def schedule(settings, floor=None):
  """Step -> learning rate: linear warm-up, cosine to `floor` at settings.horizon, then constant."""
  floor = settings.floor if floor is None else floor
  cosine = optax.cosine_decay_schedule(
    settings.learning_rate,
    max(settings.horizon - settings.warmup, 1),
    alpha=floor / settings.learning_rate,
  )
  if not settings.warmup:
    return cosine
  rise = optax.linear_schedule(
    settings.learning_rate / settings.warmup, settings.learning_rate, settings.warmup
  )
  return optax.join_schedules([rise, cosine], [settings.warmup])


def build(settings):
  """The transformation for params {'generator', 'discriminator', 'regression'}, or some of these.

  Args:
    settings: learning_rate, warmup and horizon (steps), floor, discriminator_floor, b1, b2, eps,
      weight_decay, decay_all (also of norms and biases, as released), clip (largest global norm of
      each network's gradient, 0 for none).
  """

  def adamw(floor):
    decayed = None if settings.decay_all else lambda params: jax.tree.map(_is_kernel, params)
    tx = optax.adamw(
      schedule(settings, floor),
      b1=settings.b1,
      b2=settings.b2,
      eps=settings.eps,
      weight_decay=settings.weight_decay,
      mask=decayed,
    )
    return optax.chain(optax.clip_by_global_norm(settings.clip), tx) if settings.clip else tx

  networks = {
    'generator': adamw(settings.floor),
    'discriminator': adamw(settings.discriminator_floor),
    'regression': adamw(settings.floor),
  }
  label = lambda params: {name: name for name in params}
  return optax.multi_transform(networks, label)


def _is_kernel(x):
  return x.ndim > 1
