"""The codes of the instructions that a plan is made of and the compiled kernels run."""

COPY, ZERO, ROWS, VECTOR, COLUMNS, POOL, COMBINE, SCALE, ACTIVATE, SOFTMAX = range(10)
ADD, SUBTRACT, MULTIPLY, DIVIDE = range(4)
WIDTH = 16  # floats: planes are multiples of this
