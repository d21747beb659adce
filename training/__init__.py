"""Programs that train and measure: pretrain, evaluate."""
