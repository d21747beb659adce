"""The contract `item.v1`, generated from proto/item/v1/item.proto by `make proto`: `from item.v1 import item_pb2`."""
