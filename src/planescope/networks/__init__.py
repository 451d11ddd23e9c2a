"""Networks: named tensors or a live module to layers in their places; and their builders."""
