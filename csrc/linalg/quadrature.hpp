// From block Lanczos coefficients to a discrete measure.
#pragma once
