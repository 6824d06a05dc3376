"""From labelled recordings to a model bundle: data sets, training, calibration, conversion.

`import drumline_convert` is light; TensorFlow is imported only inside the functions that train or convert.
"""
