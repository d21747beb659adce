import datetime

from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SearchPlan(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEARCH_PLAN_UNSPECIFIED: _ClassVar[SearchPlan]
    SEARCH_PLAN_EXACT: _ClassVar[SearchPlan]
    SEARCH_PLAN_APPROXIMATE: _ClassVar[SearchPlan]
    SEARCH_PLAN_MASKED: _ClassVar[SearchPlan]
    SEARCH_PLAN_WIDENED: _ClassVar[SearchPlan]

class PredictionMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PREDICTION_METHOD_UNSPECIFIED: _ClassVar[PredictionMethod]
    PREDICTION_METHOD_NEIGHBOUR_VOTE: _ClassVar[PredictionMethod]
    PREDICTION_METHOD_HEAD: _ClassVar[PredictionMethod]
SEARCH_PLAN_UNSPECIFIED: SearchPlan
SEARCH_PLAN_EXACT: SearchPlan
SEARCH_PLAN_APPROXIMATE: SearchPlan
SEARCH_PLAN_MASKED: SearchPlan
SEARCH_PLAN_WIDENED: SearchPlan
PREDICTION_METHOD_UNSPECIFIED: PredictionMethod
PREDICTION_METHOD_NEIGHBOUR_VOTE: PredictionMethod
PREDICTION_METHOD_HEAD: PredictionMethod

class Input(_message.Message):
    __slots__ = ("text", "description", "image", "adapter")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    text: str
    description: str
    image: bytes
    adapter: str
    def __init__(self, text: _Optional[str] = ..., description: _Optional[str] = ..., image: _Optional[bytes] = ..., adapter: _Optional[str] = ...) -> None: ...

class Vector(_message.Message):
    __slots__ = ("values", "space")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    values: bytes
    space: str
    def __init__(self, values: _Optional[bytes] = ..., space: _Optional[str] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "field", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    field: str
    message: str
    def __init__(self, code: _Optional[int] = ..., field: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class StageTimes(_message.Message):
    __slots__ = ("queue_s", "prepare_s", "encode_s", "search_s")
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    PREPARE_S_FIELD_NUMBER: _ClassVar[int]
    ENCODE_S_FIELD_NUMBER: _ClassVar[int]
    SEARCH_S_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    prepare_s: float
    encode_s: float
    search_s: float
    def __init__(self, queue_s: _Optional[float] = ..., prepare_s: _Optional[float] = ..., encode_s: _Optional[float] = ..., search_s: _Optional[float] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("inputs", "dimensions")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[Input]
    dimensions: int
    def __init__(self, inputs: _Optional[_Iterable[_Union[Input, _Mapping]]] = ..., dimensions: _Optional[int] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("results", "times")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[EmbedResult]
    times: StageTimes
    def __init__(self, results: _Optional[_Iterable[_Union[EmbedResult, _Mapping]]] = ..., times: _Optional[_Union[StageTimes, _Mapping]] = ...) -> None: ...

class EmbedResult(_message.Message):
    __slots__ = ("vector", "error")
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    vector: Vector
    error: Error
    def __init__(self, vector: _Optional[_Union[Vector, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class EmbedStreamRequest(_message.Message):
    __slots__ = ("input", "dimensions")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    input: Input
    dimensions: int
    def __init__(self, input: _Optional[_Union[Input, _Mapping]] = ..., dimensions: _Optional[int] = ...) -> None: ...

class EmbedStreamResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: EmbedResult
    def __init__(self, result: _Optional[_Union[EmbedResult, _Mapping]] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("collection", "queries", "k")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    collection: str
    queries: _containers.RepeatedCompositeFieldContainer[Query]
    k: int
    def __init__(self, collection: _Optional[str] = ..., queries: _Optional[_Iterable[_Union[Query, _Mapping]]] = ..., k: _Optional[int] = ...) -> None: ...

class Query(_message.Message):
    __slots__ = ("parts", "positive_examples", "negative_examples", "filter", "leave_out_ids", "lexical_weight", "min_score", "collapse_groups", "diversity", "sort", "facets", "window", "page_token")
    PARTS_FIELD_NUMBER: _ClassVar[int]
    POSITIVE_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    LEAVE_OUT_IDS_FIELD_NUMBER: _ClassVar[int]
    LEXICAL_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    COLLAPSE_GROUPS_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    SORT_FIELD_NUMBER: _ClassVar[int]
    FACETS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[QueryPart]
    positive_examples: _containers.RepeatedCompositeFieldContainer[QueryPart]
    negative_examples: _containers.RepeatedCompositeFieldContainer[QueryPart]
    filter: Filter
    leave_out_ids: _containers.RepeatedScalarFieldContainer[str]
    lexical_weight: float
    min_score: float
    collapse_groups: bool
    diversity: float
    sort: Sort
    facets: _containers.RepeatedCompositeFieldContainer[FacetRequest]
    window: int
    page_token: str
    def __init__(self, parts: _Optional[_Iterable[_Union[QueryPart, _Mapping]]] = ..., positive_examples: _Optional[_Iterable[_Union[QueryPart, _Mapping]]] = ..., negative_examples: _Optional[_Iterable[_Union[QueryPart, _Mapping]]] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ..., leave_out_ids: _Optional[_Iterable[str]] = ..., lexical_weight: _Optional[float] = ..., min_score: _Optional[float] = ..., collapse_groups: bool = ..., diversity: _Optional[float] = ..., sort: _Optional[_Union[Sort, _Mapping]] = ..., facets: _Optional[_Iterable[_Union[FacetRequest, _Mapping]]] = ..., window: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class Sort(_message.Message):
    __slots__ = ("attribute", "descending")
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    DESCENDING_FIELD_NUMBER: _ClassVar[int]
    attribute: str
    descending: bool
    def __init__(self, attribute: _Optional[str] = ..., descending: bool = ...) -> None: ...

class FacetRequest(_message.Message):
    __slots__ = ("attribute", "category_level", "limit")
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_LEVEL_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    attribute: str
    category_level: int
    limit: int
    def __init__(self, attribute: _Optional[str] = ..., category_level: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class QueryPart(_message.Message):
    __slots__ = ("input", "product_id", "vector", "weight")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    PRODUCT_ID_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    input: Input
    product_id: str
    vector: Vector
    weight: float
    def __init__(self, input: _Optional[_Union[Input, _Mapping]] = ..., product_id: _Optional[str] = ..., vector: _Optional[_Union[Vector, _Mapping]] = ..., weight: _Optional[float] = ...) -> None: ...

class Filter(_message.Message):
    __slots__ = ("all", "any", "equal", "range", "under")
    ALL_FIELD_NUMBER: _ClassVar[int]
    ANY_FIELD_NUMBER: _ClassVar[int]
    NOT_FIELD_NUMBER: _ClassVar[int]
    EQUAL_FIELD_NUMBER: _ClassVar[int]
    IN_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    UNDER_FIELD_NUMBER: _ClassVar[int]
    all: FilterList
    any: FilterList
    equal: EqualFilter
    range: RangeFilter
    under: UnderFilter
    def __init__(self, all: _Optional[_Union[FilterList, _Mapping]] = ..., any: _Optional[_Union[FilterList, _Mapping]] = ..., equal: _Optional[_Union[EqualFilter, _Mapping]] = ..., range: _Optional[_Union[RangeFilter, _Mapping]] = ..., under: _Optional[_Union[UnderFilter, _Mapping]] = ..., **kwargs) -> None: ...

class FilterList(_message.Message):
    __slots__ = ("filters",)
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    filters: _containers.RepeatedCompositeFieldContainer[Filter]
    def __init__(self, filters: _Optional[_Iterable[_Union[Filter, _Mapping]]] = ...) -> None: ...

class EqualFilter(_message.Message):
    __slots__ = ("attribute", "value")
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    attribute: str
    value: AttributeValue
    def __init__(self, attribute: _Optional[str] = ..., value: _Optional[_Union[AttributeValue, _Mapping]] = ...) -> None: ...

class InFilter(_message.Message):
    __slots__ = ("attribute", "values")
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    attribute: str
    values: _containers.RepeatedCompositeFieldContainer[AttributeValue]
    def __init__(self, attribute: _Optional[str] = ..., values: _Optional[_Iterable[_Union[AttributeValue, _Mapping]]] = ...) -> None: ...

class RangeFilter(_message.Message):
    __slots__ = ("attribute", "at_least", "above", "at_most", "below")
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    ABOVE_FIELD_NUMBER: _ClassVar[int]
    AT_MOST_FIELD_NUMBER: _ClassVar[int]
    BELOW_FIELD_NUMBER: _ClassVar[int]
    attribute: str
    at_least: float
    above: float
    at_most: float
    below: float
    def __init__(self, attribute: _Optional[str] = ..., at_least: _Optional[float] = ..., above: _Optional[float] = ..., at_most: _Optional[float] = ..., below: _Optional[float] = ...) -> None: ...

class UnderFilter(_message.Message):
    __slots__ = ("category",)
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    category: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, category: _Optional[_Iterable[str]] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("results", "times")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[SearchResult]
    times: StageTimes
    def __init__(self, results: _Optional[_Iterable[_Union[SearchResult, _Mapping]]] = ..., times: _Optional[_Union[StageTimes, _Mapping]] = ...) -> None: ...

class SearchResult(_message.Message):
    __slots__ = ("error", "hits", "plan", "space", "facets", "next_page_token")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    FACETS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    error: Error
    hits: _containers.RepeatedCompositeFieldContainer[Hit]
    plan: SearchPlan
    space: str
    facets: _containers.RepeatedCompositeFieldContainer[Facet]
    next_page_token: str
    def __init__(self, error: _Optional[_Union[Error, _Mapping]] = ..., hits: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ..., plan: _Optional[_Union[SearchPlan, str]] = ..., space: _Optional[str] = ..., facets: _Optional[_Iterable[_Union[Facet, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Facet(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[FacetValue]
    def __init__(self, values: _Optional[_Iterable[_Union[FacetValue, _Mapping]]] = ...) -> None: ...

class FacetValue(_message.Message):
    __slots__ = ("value", "category", "count")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    value: AttributeValue
    category: _containers.RepeatedScalarFieldContainer[str]
    count: int
    def __init__(self, value: _Optional[_Union[AttributeValue, _Mapping]] = ..., category: _Optional[_Iterable[str]] = ..., count: _Optional[int] = ...) -> None: ...

class Hit(_message.Message):
    __slots__ = ("product", "score", "group_size")
    PRODUCT_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    product: Product
    score: float
    group_size: int
    def __init__(self, product: _Optional[_Union[Product, _Mapping]] = ..., score: _Optional[float] = ..., group_size: _Optional[int] = ...) -> None: ...

class PredictCategoryRequest(_message.Message):
    __slots__ = ("collection", "inputs", "top_k", "start_category")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    START_CATEGORY_FIELD_NUMBER: _ClassVar[int]
    collection: str
    inputs: _containers.RepeatedCompositeFieldContainer[Input]
    top_k: int
    start_category: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, collection: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[Input, _Mapping]]] = ..., top_k: _Optional[int] = ..., start_category: _Optional[_Iterable[str]] = ...) -> None: ...

class PredictCategoryResponse(_message.Message):
    __slots__ = ("predictions", "times")
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    predictions: _containers.RepeatedCompositeFieldContainer[CategoryPrediction]
    times: StageTimes
    def __init__(self, predictions: _Optional[_Iterable[_Union[CategoryPrediction, _Mapping]]] = ..., times: _Optional[_Union[StageTimes, _Mapping]] = ...) -> None: ...

class CategoryPrediction(_message.Message):
    __slots__ = ("error", "paths", "abstained", "method", "adapter", "unknown")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    ABSTAINED_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    error: Error
    paths: _containers.RepeatedCompositeFieldContainer[CategoryPath]
    abstained: bool
    method: PredictionMethod
    adapter: str
    unknown: float
    def __init__(self, error: _Optional[_Union[Error, _Mapping]] = ..., paths: _Optional[_Iterable[_Union[CategoryPath, _Mapping]]] = ..., abstained: bool = ..., method: _Optional[_Union[PredictionMethod, str]] = ..., adapter: _Optional[str] = ..., unknown: _Optional[float] = ...) -> None: ...

class CategoryPath(_message.Message):
    __slots__ = ("levels",)
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    levels: _containers.RepeatedCompositeFieldContainer[CategoryLevel]
    def __init__(self, levels: _Optional[_Iterable[_Union[CategoryLevel, _Mapping]]] = ...) -> None: ...

class CategoryLevel(_message.Message):
    __slots__ = ("name", "probability")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    probability: float
    def __init__(self, name: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class Product(_message.Message):
    __slots__ = ("product_id", "title", "description", "category", "group_id", "language", "attributes", "images")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: AttributeValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[AttributeValue, _Mapping]] = ...) -> None: ...
    PRODUCT_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    product_id: str
    title: str
    description: str
    category: _containers.RepeatedScalarFieldContainer[str]
    group_id: str
    language: str
    attributes: _containers.MessageMap[str, AttributeValue]
    images: _containers.RepeatedCompositeFieldContainer[Picture]
    def __init__(self, product_id: _Optional[str] = ..., title: _Optional[str] = ..., description: _Optional[str] = ..., category: _Optional[_Iterable[str]] = ..., group_id: _Optional[str] = ..., language: _Optional[str] = ..., attributes: _Optional[_Mapping[str, AttributeValue]] = ..., images: _Optional[_Iterable[_Union[Picture, _Mapping]]] = ...) -> None: ...

class Picture(_message.Message):
    __slots__ = ("data", "reference")
    DATA_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    reference: str
    def __init__(self, data: _Optional[bytes] = ..., reference: _Optional[str] = ...) -> None: ...

class AttributeValue(_message.Message):
    __slots__ = ("string_value", "number_value", "bool_value", "string_list")
    STRING_VALUE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_VALUE_FIELD_NUMBER: _ClassVar[int]
    BOOL_VALUE_FIELD_NUMBER: _ClassVar[int]
    STRING_LIST_FIELD_NUMBER: _ClassVar[int]
    string_value: str
    number_value: float
    bool_value: bool
    string_list: StringList
    def __init__(self, string_value: _Optional[str] = ..., number_value: _Optional[float] = ..., bool_value: bool = ..., string_list: _Optional[_Union[StringList, _Mapping]] = ...) -> None: ...

class StringList(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class UpsertProductsRequest(_message.Message):
    __slots__ = ("collection", "products", "update_mask")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    PRODUCTS_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    collection: str
    products: _containers.RepeatedCompositeFieldContainer[Product]
    update_mask: _field_mask_pb2.FieldMask
    def __init__(self, collection: _Optional[str] = ..., products: _Optional[_Iterable[_Union[Product, _Mapping]]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class UpsertProductsResponse(_message.Message):
    __slots__ = ("results", "times")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[UpsertResult]
    times: StageTimes
    def __init__(self, results: _Optional[_Iterable[_Union[UpsertResult, _Mapping]]] = ..., times: _Optional[_Union[StageTimes, _Mapping]] = ...) -> None: ...

class UpsertResult(_message.Message):
    __slots__ = ("product_id", "error", "created")
    PRODUCT_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    product_id: str
    error: Error
    created: bool
    def __init__(self, product_id: _Optional[str] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., created: bool = ...) -> None: ...

class DeleteProductsRequest(_message.Message):
    __slots__ = ("collection", "product_ids")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    PRODUCT_IDS_FIELD_NUMBER: _ClassVar[int]
    collection: str
    product_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, collection: _Optional[str] = ..., product_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class DeleteProductsResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[DeleteResult]
    def __init__(self, results: _Optional[_Iterable[_Union[DeleteResult, _Mapping]]] = ...) -> None: ...

class DeleteResult(_message.Message):
    __slots__ = ("product_id", "error")
    PRODUCT_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    product_id: str
    error: Error
    def __init__(self, product_id: _Optional[str] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class GetProductRequest(_message.Message):
    __slots__ = ("collection", "product_id", "include_vector")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    PRODUCT_ID_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_VECTOR_FIELD_NUMBER: _ClassVar[int]
    collection: str
    product_id: str
    include_vector: bool
    def __init__(self, collection: _Optional[str] = ..., product_id: _Optional[str] = ..., include_vector: bool = ...) -> None: ...

class GetProductResponse(_message.Message):
    __slots__ = ("product", "vector")
    PRODUCT_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    product: Product
    vector: Vector
    def __init__(self, product: _Optional[_Union[Product, _Mapping]] = ..., vector: _Optional[_Union[Vector, _Mapping]] = ...) -> None: ...

class GetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetInfoResponse(_message.Message):
    __slots__ = ("server_version", "model", "adapters", "collections", "limits")
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    server_version: str
    model: ModelInfo
    adapters: _containers.RepeatedCompositeFieldContainer[AdapterInfo]
    collections: _containers.RepeatedCompositeFieldContainer[CollectionInfo]
    limits: Limits
    def __init__(self, server_version: _Optional[str] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ..., adapters: _Optional[_Iterable[_Union[AdapterInfo, _Mapping]]] = ..., collections: _Optional[_Iterable[_Union[CollectionInfo, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("space", "vector_width", "variant", "engine")
    SPACE_FIELD_NUMBER: _ClassVar[int]
    VECTOR_WIDTH_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    space: str
    vector_width: int
    variant: str
    engine: str
    def __init__(self, space: _Optional[str] = ..., vector_width: _Optional[int] = ..., variant: _Optional[str] = ..., engine: _Optional[str] = ...) -> None: ...

class AdapterInfo(_message.Message):
    __slots__ = ("name", "method", "space", "category", "num_parameters", "loaded", "fault")
    NAME_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    name: str
    method: str
    space: str
    category: _containers.RepeatedScalarFieldContainer[str]
    num_parameters: int
    loaded: bool
    fault: str
    def __init__(self, name: _Optional[str] = ..., method: _Optional[str] = ..., space: _Optional[str] = ..., category: _Optional[_Iterable[str]] = ..., num_parameters: _Optional[int] = ..., loaded: bool = ..., fault: _Optional[str] = ...) -> None: ...

class CollectionInfo(_message.Message):
    __slots__ = ("name", "num_products", "space", "vector_width", "generation", "create_time", "indexes", "recall_estimate")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_PRODUCTS_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    VECTOR_WIDTH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    INDEXES_FIELD_NUMBER: _ClassVar[int]
    RECALL_ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    name: str
    num_products: int
    space: str
    vector_width: int
    generation: str
    create_time: _timestamp_pb2.Timestamp
    indexes: _containers.RepeatedCompositeFieldContainer[IndexInfo]
    recall_estimate: float
    def __init__(self, name: _Optional[str] = ..., num_products: _Optional[int] = ..., space: _Optional[str] = ..., vector_width: _Optional[int] = ..., generation: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., indexes: _Optional[_Iterable[_Union[IndexInfo, _Mapping]]] = ..., recall_estimate: _Optional[float] = ...) -> None: ...

class IndexInfo(_message.Message):
    __slots__ = ("kind", "num_products", "tuned_recall")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NUM_PRODUCTS_FIELD_NUMBER: _ClassVar[int]
    TUNED_RECALL_FIELD_NUMBER: _ClassVar[int]
    kind: str
    num_products: int
    tuned_recall: float
    def __init__(self, kind: _Optional[str] = ..., num_products: _Optional[int] = ..., tuned_recall: _Optional[float] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_inputs", "max_k", "max_message_bytes", "max_image_bytes", "max_image_pixels", "max_window")
    MAX_INPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_K_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_WINDOW_FIELD_NUMBER: _ClassVar[int]
    max_inputs: int
    max_k: int
    max_message_bytes: int
    max_image_bytes: int
    max_image_pixels: int
    max_window: int
    def __init__(self, max_inputs: _Optional[int] = ..., max_k: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_image_bytes: _Optional[int] = ..., max_image_pixels: _Optional[int] = ..., max_window: _Optional[int] = ...) -> None: ...

class ListAdaptersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("adapters",)
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[AdapterInfo]
    def __init__(self, adapters: _Optional[_Iterable[_Union[AdapterInfo, _Mapping]]] = ...) -> None: ...

class LoadAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class LoadAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: AdapterInfo
    def __init__(self, adapter: _Optional[_Union[AdapterInfo, _Mapping]] = ...) -> None: ...

class UnloadAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: AdapterInfo
    def __init__(self, adapter: _Optional[_Union[AdapterInfo, _Mapping]] = ...) -> None: ...

class ReloadRequest(_message.Message):
    __slots__ = ("variant",)
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    variant: str
    def __init__(self, variant: _Optional[str] = ...) -> None: ...

class ReloadResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelInfo
    def __init__(self, model: _Optional[_Union[ModelInfo, _Mapping]] = ...) -> None: ...

class ReembedRequest(_message.Message):
    __slots__ = ("collection", "model", "variant", "max_rate", "catalog", "words_alone")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    MAX_RATE_FIELD_NUMBER: _ClassVar[int]
    CATALOG_FIELD_NUMBER: _ClassVar[int]
    WORDS_ALONE_FIELD_NUMBER: _ClassVar[int]
    collection: str
    model: str
    variant: str
    max_rate: float
    catalog: str
    words_alone: bool
    def __init__(self, collection: _Optional[str] = ..., model: _Optional[str] = ..., variant: _Optional[str] = ..., max_rate: _Optional[float] = ..., catalog: _Optional[str] = ..., words_alone: bool = ...) -> None: ...

class ReembedResponse(_message.Message):
    __slots__ = ("generation", "num_encoded", "num_products", "elapsed_s", "done", "num_refused", "refused", "num_words_alone", "overlap_at_10", "samples")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    NUM_ENCODED_FIELD_NUMBER: _ClassVar[int]
    NUM_PRODUCTS_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_S_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    NUM_REFUSED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    NUM_WORDS_ALONE_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_AT_10_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    generation: str
    num_encoded: int
    num_products: int
    elapsed_s: float
    done: bool
    num_refused: int
    refused: _containers.RepeatedCompositeFieldContainer[RefusedProduct]
    num_words_alone: int
    overlap_at_10: float
    samples: _containers.RepeatedCompositeFieldContainer[OverlapSample]
    def __init__(self, generation: _Optional[str] = ..., num_encoded: _Optional[int] = ..., num_products: _Optional[int] = ..., elapsed_s: _Optional[float] = ..., done: bool = ..., num_refused: _Optional[int] = ..., refused: _Optional[_Iterable[_Union[RefusedProduct, _Mapping]]] = ..., num_words_alone: _Optional[int] = ..., overlap_at_10: _Optional[float] = ..., samples: _Optional[_Iterable[_Union[OverlapSample, _Mapping]]] = ...) -> None: ...

class RefusedProduct(_message.Message):
    __slots__ = ("product_id", "reason")
    PRODUCT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    product_id: str
    reason: str
    def __init__(self, product_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class OverlapSample(_message.Message):
    __slots__ = ("product", "overlap", "before", "after")
    PRODUCT_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    product: Product
    overlap: float
    before: _containers.RepeatedCompositeFieldContainer[Product]
    after: _containers.RepeatedCompositeFieldContainer[Product]
    def __init__(self, product: _Optional[_Union[Product, _Mapping]] = ..., overlap: _Optional[float] = ..., before: _Optional[_Iterable[_Union[Product, _Mapping]]] = ..., after: _Optional[_Iterable[_Union[Product, _Mapping]]] = ...) -> None: ...

class SwitchGenerationRequest(_message.Message):
    __slots__ = ("collection", "generation", "words_alone")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    WORDS_ALONE_FIELD_NUMBER: _ClassVar[int]
    collection: str
    generation: str
    words_alone: bool
    def __init__(self, collection: _Optional[str] = ..., generation: _Optional[str] = ..., words_alone: bool = ...) -> None: ...

class SwitchGenerationResponse(_message.Message):
    __slots__ = ("generation", "previous_generation", "num_encoded")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_GENERATION_FIELD_NUMBER: _ClassVar[int]
    NUM_ENCODED_FIELD_NUMBER: _ClassVar[int]
    generation: str
    previous_generation: str
    num_encoded: int
    def __init__(self, generation: _Optional[str] = ..., previous_generation: _Optional[str] = ..., num_encoded: _Optional[int] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("collection", "model", "words_alone", "discard_writes")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WORDS_ALONE_FIELD_NUMBER: _ClassVar[int]
    DISCARD_WRITES_FIELD_NUMBER: _ClassVar[int]
    collection: str
    model: str
    words_alone: bool
    discard_writes: bool
    def __init__(self, collection: _Optional[str] = ..., model: _Optional[str] = ..., words_alone: bool = ..., discard_writes: bool = ...) -> None: ...

class RollbackResponse(_message.Message):
    __slots__ = ("generation", "previous_generation", "num_encoded")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_GENERATION_FIELD_NUMBER: _ClassVar[int]
    NUM_ENCODED_FIELD_NUMBER: _ClassVar[int]
    generation: str
    previous_generation: str
    num_encoded: int
    def __init__(self, generation: _Optional[str] = ..., previous_generation: _Optional[str] = ..., num_encoded: _Optional[int] = ...) -> None: ...

class BackupRequest(_message.Message):
    __slots__ = ("collection", "name")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    collection: str
    name: str
    def __init__(self, collection: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class BackupResponse(_message.Message):
    __slots__ = ("path", "num_products", "size_bytes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    NUM_PRODUCTS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    path: str
    num_products: int
    size_bytes: int
    def __init__(self, path: _Optional[str] = ..., num_products: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...
