"""Random changes of images, drawn and made on the device, inside a compiled step."""

import jax
import jax.numpy as jnp


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirror about half of the images, left to right.

    Args:
      key: draws which ones.
      images: [batch, height, width, colours] of any dtype.

    Returns:
      Images of the same shape and dtype.
    """
    mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def crop(key: jax.Array, images: jax.Array, padding: int = 4) -> jax.Array:
    """Move each image by up to `padding` pixels; zeros come in at the edges.

    Args:
      key: draws the movements, each of the `(2 * padding + 1) ** 2` alike.
      images: [batch, height, width, colours] of any dtype.
      padding: pixels at each edge.

    Returns:
      Images of the same shape and dtype.
    """
    edges = (padding, padding)
    padded = jnp.pad(images, ((0, 0), edges, edges, (0, 0)))
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])

    return jax.vmap(cut)(padded, corners)
